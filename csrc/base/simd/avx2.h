// Sixteen lanes as two AVX2 registers. Names and meaning as in portable.h.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace ernie::ERNIE_VARIANT {

inline constexpr int kTileRows = 4;
inline constexpr int kTilePanels = 1;

struct F16 {
  __m256 lo, hi;
};
struct I16 {
  __m256i lo, hi;
};

static inline F16 f_set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline F16 f_zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
static inline F16 f_load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline void f_store(float* p, F16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
static inline __m256 half_from_bf16(const uint16_t* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
static inline F16 f_load_bf16(const uint16_t* p) { return {half_from_bf16(p), half_from_bf16(p + 8)}; }
static inline __m128i half_to_bf16(__m256 a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(_mm256_set1_epi32(0x7fff), odd));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256 is_nan = _mm256_cmp_ps(a, a, _CMP_UNORD_Q);
  rounded = _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(is_nan));
  rounded = _mm256_srli_epi32(rounded, 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0x08);
  return _mm256_castsi256_si128(packed);
}
static inline void f_store_bf16(uint16_t* p, F16 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), half_to_bf16(a.lo));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), half_to_bf16(a.hi));
}
static inline void f_store_bf16_normal(uint16_t* p, F16 a, F16 b) {
  f_store_bf16(p, a);
  f_store_bf16(p + 16, b);
}
static inline F16 f_keep(F16 a, size_t n, F16 rest) {
  const __m256 count = _mm256_set1_ps(static_cast<float>(n));
  const __m256 lo = _mm256_cmp_ps(_mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7), count, _CMP_LT_OQ);
  const __m256 hi = _mm256_cmp_ps(_mm256_setr_ps(8, 9, 10, 11, 12, 13, 14, 15), count, _CMP_LT_OQ);
  return {_mm256_blendv_ps(rest.lo, a.lo, lo), _mm256_blendv_ps(rest.hi, a.hi, hi)};
}
static inline F16 f_add(F16 a, F16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
static inline F16 f_sub(F16 a, F16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
static inline F16 f_mul(F16 a, F16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
static inline F16 f_div(F16 a, F16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
static inline F16 f_max(F16 a, F16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
static inline F16 f_min(F16 a, F16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
static inline F16 f_abs(F16 a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
static inline F16 f_fma(F16 a, F16 b, F16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
static inline F16 f_round(F16 a) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.lo, mode), _mm256_round_ps(a.hi, mode)};
}
static inline __m256 half_pow2(__m256 n) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
static inline F16 f_pow2(F16 n) { return {half_pow2(n.lo), half_pow2(n.hi)}; }
static inline __m256 half_scale(__m256 p, __m256 t) {
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_castps_si256(t), 23)));
}
static inline F16 f_scale(F16 p, F16 t) { return {half_scale(p.lo, t.lo), half_scale(p.hi, t.hi)}; }
static inline float f_sum(F16 a) {
  const __m256 eight = _mm256_add_ps(a.lo, a.hi);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
static inline F16 f_sqrt(F16 a) { return {_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)}; }
static inline float f_maximum(F16 a) {
  const __m256 eight = _mm256_max_ps(a.lo, a.hi);
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}
static inline void f_store_s8(int8_t* p, F16 a) {
  const __m256i words = _mm256_permute4x64_epi64(
      _mm256_packs_epi32(_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)), 0xd8);
  const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}

static inline I16 i_set1(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
static inline I16 i_load(const void* p) {
  const auto* from = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(from), _mm256_loadu_si256(from + 1)};
}
static inline void i_store(void* p, I16 a) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), a.lo);
  _mm256_storeu_si256(static_cast<__m256i*>(p) + 1, a.hi);
}
static inline I16 i_add(I16 a, I16 b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
static inline I16 i_mul(I16 a, I16 b) { return {_mm256_mullo_epi32(a.lo, b.lo), _mm256_mullo_epi32(a.hi, b.hi)}; }
static inline I16 i_add_short(I16 a, I16 b, I16 c) {
  return {_mm256_add_epi32(a.lo, _mm256_madd_epi16(b.lo, c.lo)), _mm256_add_epi32(a.hi, _mm256_madd_epi16(b.hi, c.hi))};
}
static inline I16 i_max(I16 a, I16 b) { return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)}; }
static inline int32_t i_maximum(I16 a) {
  const __m256i eight = _mm256_max_epi32(a.lo, a.hi);
  __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}
static inline I16 i_field(I16 a, int shift, int32_t mask) {
  const __m256i m = _mm256_set1_epi32(mask);
  return {_mm256_and_si256(_mm256_srli_epi32(a.lo, shift), m), _mm256_and_si256(_mm256_srli_epi32(a.hi, shift), m)};
}
template <int j>
static inline I16 i_nibble(I16 a) {
  const __m256i mask = _mm256_set1_epi32(15);
  return {_mm256_and_si256(_mm256_srli_epi32(a.lo, 4 * j), mask), _mm256_and_si256(_mm256_srli_epi32(a.hi, 4 * j), mask)};
}
static inline F16 i_to_float(I16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }

// vpmaddubsw would overflow its 16 bits, so bytes are split into even and odd 16-bit lanes and multiplied there: exact.
struct LineI8 {
  __m256i even_lo, odd_lo, even_hi, odd_hi;
};
static inline LineI8 split_bytes(__m256i lo, __m256i hi) {
  const __m256i low_byte = _mm256_set1_epi16(0xff);
  return {_mm256_and_si256(lo, low_byte), _mm256_srli_epi16(lo, 8), _mm256_and_si256(hi, low_byte),
          _mm256_srli_epi16(hi, 8)};
}
static inline LineI8 load_line_i8(const uint8_t* p) {
  return split_bytes(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
                     _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32)));
}
static inline __m256i nibbles(__m256i bytes, int shift) {
  return _mm256_and_si256(_mm256_srli_epi16(bytes, shift), _mm256_set1_epi8(15));
}
static inline void store_line(uint8_t* p, const LineI8& line, int more) {
  const __m256i lo = _mm256_or_si256(line.even_lo, _mm256_slli_epi16(line.odd_lo, 8));
  const __m256i hi = _mm256_or_si256(line.even_hi, _mm256_slli_epi16(line.odd_hi, 8));
  const __m256i all = _mm256_set1_epi8(static_cast<char>(more));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_add_epi8(lo, all));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), _mm256_add_epi8(hi, all));
}
template <int kBits, int kQuad>
static inline __m256i join_half(const uint8_t* high, const uint8_t* low) {
  constexpr int kLow = kBits == 4 ? kQuad % 2 * 4 : 2 * kQuad;
  const __m256i upper = nibbles(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(high)), kQuad % 2 * 4);
  const __m256i parts = _mm256_srli_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(low)), kLow);
  return _mm256_or_si256(_mm256_slli_epi16(upper, kBits), _mm256_and_si256(parts, _mm256_set1_epi8((1 << kBits) - 1)));
}
template <int kBits, int kQuad>
static inline LineI8 join_line(const uint8_t* high, const uint8_t* low) {
  return split_bytes(join_half<kBits, kQuad>(high, low), join_half<kBits, kQuad>(high + 32, low + 32));
}
struct LineI4 {
  LineI8 low, high;
};
static inline LineI4 load_line_i4(const uint8_t* p) {
  const __m256i lo = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i hi = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32));
  return {split_bytes(nibbles(lo, 0), nibbles(hi, 0)), split_bytes(nibbles(lo, 4), nibbles(hi, 4))};
}
// 128 + factor * (nibble - 8) for the bytes of 8 lanes, in 16-bit arithmetic.
static inline __m256i expand_half(__m256i bytes, __m256i factor) {
  const __m256i both = _mm256_or_si256(factor, _mm256_slli_epi32(factor, 16));
  const __m256i base = _mm256_sub_epi16(_mm256_set1_epi16(128), _mm256_slli_epi16(both, 3));
  const __m256i even = _mm256_mullo_epi16(_mm256_and_si256(bytes, _mm256_set1_epi16(0xff)), both);
  const __m256i odd = _mm256_mullo_epi16(_mm256_srli_epi16(bytes, 8), both);
  return _mm256_or_si256(_mm256_add_epi16(even, base), _mm256_slli_epi16(_mm256_add_epi16(odd, base), 8));
}
static inline void expand_line(const uint8_t* from, int shift, I16 factor, uint8_t* out) {
  const __m256i lo = nibbles(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)), shift);
  const __m256i hi = nibbles(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 32)), shift);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), expand_half(lo, factor.lo));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 32), expand_half(hi, factor.hi));
}
struct Quad {
  __m256i even, odd;
};
static inline Quad load_quad(const int8_t* p) {
  int32_t bytes;
  std::memcpy(&bytes, p, 4);
  const __m256i all = _mm256_set1_epi32(bytes);
  return {_mm256_srai_epi16(_mm256_slli_epi16(all, 8), 8), _mm256_srai_epi16(all, 8)};
}
static inline I16 dot_i8(I16 acc, const LineI8& w, const Quad& a) {
  const __m256i lo = _mm256_add_epi32(_mm256_madd_epi16(w.even_lo, a.even), _mm256_madd_epi16(w.odd_lo, a.odd));
  const __m256i hi = _mm256_add_epi32(_mm256_madd_epi16(w.even_hi, a.even), _mm256_madd_epi16(w.odd_hi, a.odd));
  return {_mm256_add_epi32(acc.lo, lo), _mm256_add_epi32(acc.hi, hi)};
}
static inline I16 dot_i8_at(I16 acc, const LineI8& w, const int8_t* a) { return dot_i8(acc, w, load_quad(a)); }

struct LineBf16 {
  F16 first, second;
};
static inline LineBf16 load_line_bf16(const uint8_t* p) {
  const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  const __m256i lo = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i hi = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32));
  return {{_mm256_castsi256_ps(_mm256_slli_epi32(lo, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(hi, 16))},
          {_mm256_castsi256_ps(_mm256_and_si256(lo, high)), _mm256_castsi256_ps(_mm256_and_si256(hi, high))}};
}
static inline F16 f_load_first(const uint8_t* p) { return load_line_bf16(p).first; }
static inline F16 f_load_second(const uint8_t* p) { return load_line_bf16(p).second; }
struct PairBf16 {
  __m256 first, second;
};
static inline PairBf16 load_pair_bf16(const uint16_t* p) {
  int32_t bits;
  std::memcpy(&bits, p, 4);
  const __m256i all = _mm256_set1_epi32(bits);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(all, 16)),
          _mm256_castsi256_ps(_mm256_and_si256(all, _mm256_set1_epi32(static_cast<int>(0xffff0000u))))};
}
static inline F16 dot_bf16(F16 acc, const LineBf16& w, const PairBf16& a) {
  acc = {_mm256_fmadd_ps(w.first.lo, a.first, acc.lo), _mm256_fmadd_ps(w.first.hi, a.first, acc.hi)};
  return {_mm256_fmadd_ps(w.second.lo, a.second, acc.lo), _mm256_fmadd_ps(w.second.hi, a.second, acc.hi)};
}

}  // namespace ernie::ERNIE_VARIANT
