// Sixteen lanes as one AVX-512 register. Names and meaning as in portable.h.
//
// The variants differ in two operations only: with VNNI four bytes are multiplied and added in one instruction, with
// BF16 two bfloat16 pairs. The feature macros of the compiler choose.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace ernie::ERNIE_VARIANT {

inline constexpr int kTileRows = 6;
inline constexpr int kTilePanels = 4;

struct F16 {
  __m512 v;
};
struct I16 {
  __m512i v;
};

static inline F16 f_set1(float x) { return {_mm512_set1_ps(x)}; }
static inline F16 f_zero() { return {_mm512_setzero_ps()}; }
static inline F16 f_load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline void f_store(float* p, F16 a) { _mm512_storeu_ps(p, a.v); }
static inline F16 f_load_bf16(const uint16_t* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
// Not vcvtneps2bf16: that one flushes denormals, and every variant stores the same bits.
static inline void f_store_bf16(uint16_t* p, F16 a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(_mm512_set1_epi32(0x7fff), odd));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  rounded = _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x400000));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}
static inline void f_store_bf16_normal(uint16_t* p, F16 a, F16 b) {
#if defined(__AVX512BF16__)
  __m512i bits;
  asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(bits) : "v"(a.v), "v"(b.v));
  _mm512_storeu_si512(p, bits);
#else
  f_store_bf16(p, a);
  f_store_bf16(p + 16, b);
#endif
}
static inline F16 f_keep(F16 a, size_t n, F16 rest) {
  return {_mm512_mask_blend_ps(static_cast<__mmask16>((1u << n) - 1), rest.v, a.v)};
}
static inline F16 f_add(F16 a, F16 b) { return {_mm512_add_ps(a.v, b.v)}; }
static inline F16 f_sub(F16 a, F16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
static inline F16 f_mul(F16 a, F16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
static inline F16 f_div(F16 a, F16 b) { return {_mm512_div_ps(a.v, b.v)}; }
static inline F16 f_max(F16 a, F16 b) { return {_mm512_max_ps(a.v, b.v)}; }
static inline F16 f_min(F16 a, F16 b) { return {_mm512_min_ps(a.v, b.v)}; }
static inline F16 f_abs(F16 a) { return {_mm512_abs_ps(a.v)}; }
static inline F16 f_fma(F16 a, F16 b, F16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
static inline F16 f_round(F16 a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
static inline F16 f_pow2(F16 n) {
  const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
}
static inline F16 f_scale(F16 p, F16 t) {
  const __m512i power = _mm512_slli_epi32(_mm512_castps_si512(t.v), 23);
  return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p.v), power))};
}
static inline float f_sum(F16 a) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
static inline F16 f_sqrt(F16 a) { return {_mm512_sqrt_ps(a.v)}; }
static inline float f_maximum(F16 a) {
  const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}
static inline void f_store_s8(int8_t* p, F16 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a.v)));
}

static inline I16 i_set1(int32_t x) { return {_mm512_set1_epi32(x)}; }
static inline I16 i_load(const void* p) { return {_mm512_loadu_si512(p)}; }
static inline void i_store(void* p, I16 a) { _mm512_storeu_si512(p, a.v); }
static inline I16 i_add(I16 a, I16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
static inline I16 i_mul(I16 a, I16 b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
static inline I16 i_add_short(I16 a, I16 b, I16 c) {
#if defined(__AVX512VNNI__)
  asm("vpdpwssd %2, %1, %0" : "+v"(a.v) : "v"(b.v), "v"(c.v));
  return a;
#else
  return {_mm512_add_epi32(a.v, _mm512_madd_epi16(b.v, c.v))};
#endif
}
static inline I16 i_max(I16 a, I16 b) { return {_mm512_max_epi32(a.v, b.v)}; }
static inline int32_t i_maximum(I16 a) { return _mm512_reduce_max_epi32(a.v); }
static inline I16 i_field(I16 a, int shift, int32_t mask) {
  return {_mm512_and_si512(_mm512_srl_epi32(a.v, _mm_cvtsi32_si128(shift)), _mm512_set1_epi32(mask))};
}
template <int j>
static inline I16 i_nibble(I16 a) {
  return {_mm512_and_si512(_mm512_srli_epi32(a.v, 4 * j), _mm512_set1_epi32(15))};
}
static inline F16 i_to_float(I16 a) { return {_mm512_cvtepi32_ps(a.v)}; }

static inline __m512i broadcast4(const void* p) {
  int32_t bits;
  std::memcpy(&bits, p, 4);
  return _mm512_set1_epi32(bits);
}

static inline __m512i nibbles(__m512i bytes, int shift) {
  const __m512i moved = _mm512_srl_epi16(bytes, _mm_cvtsi32_si128(shift));
  return _mm512_and_si512(moved, _mm512_set1_epi8(15));
}
// In 16-bit arithmetic; see portable.h.
static inline void expand_line(const uint8_t* from, int shift, I16 factor, uint8_t* out) {
  const __m512i bytes = nibbles(_mm512_loadu_si512(from), shift);
  const __m512i both = _mm512_or_si512(factor.v, _mm512_slli_epi32(factor.v, 16));
  const __m512i base = _mm512_sub_epi16(_mm512_set1_epi16(128), _mm512_slli_epi16(both, 3));
  const __m512i even = _mm512_mullo_epi16(_mm512_and_si512(bytes, _mm512_set1_epi16(0xff)), both);
  const __m512i odd = _mm512_mullo_epi16(_mm512_srli_epi16(bytes, 8), both);
  _mm512_storeu_si512(
      out, _mm512_or_si512(_mm512_add_epi16(even, base), _mm512_slli_epi16(_mm512_add_epi16(odd, base), 8)));
}

#if defined(__AVX512VNNI__)
struct LineI8 {
  __m512i v;
};
static inline LineI8 split_bytes(__m512i all) { return {all}; }
static inline __m512i join_bytes(LineI8 line) { return line.v; }
struct Quad {
  __m512i v;
};
static inline Quad load_quad(const int8_t* p) { return {broadcast4(p)}; }
// As assembly: GCC 12 spills the accumulators of a tile that is written with the intrinsic.
static inline I16 dot_i8(I16 acc, LineI8 w, Quad a) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc.v) : "v"(w.v), "v"(a.v));
  return acc;
}
// One instruction in place of two, where the bytes are used once.
static inline I16 dot_i8_at(I16 acc, LineI8 w, const int8_t* a) {
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc.v) : "v"(w.v), "m"(*reinterpret_cast<const int8_t(*)[4]>(a)));
  return acc;
}
#else
struct LineI8 {
  __m512i even, odd;
};
static inline LineI8 split_bytes(__m512i all) {
  return {_mm512_and_si512(all, _mm512_set1_epi16(0xff)), _mm512_srli_epi16(all, 8)};
}
static inline __m512i join_bytes(LineI8 line) { return _mm512_or_si512(line.even, _mm512_slli_epi16(line.odd, 8)); }
struct Quad {
  __m512i even, odd;
};
static inline Quad load_quad(const int8_t* p) {
  const __m512i all = broadcast4(p);
  return {_mm512_srai_epi16(_mm512_slli_epi16(all, 8), 8), _mm512_srai_epi16(all, 8)};
}
static inline I16 dot_i8(I16 acc, LineI8 w, Quad a) {
  const __m512i products = _mm512_add_epi32(_mm512_madd_epi16(w.even, a.even), _mm512_madd_epi16(w.odd, a.odd));
  return {_mm512_add_epi32(acc.v, products)};
}
static inline I16 dot_i8_at(I16 acc, LineI8 w, const int8_t* a) { return dot_i8(acc, w, load_quad(a)); }
#endif

static inline LineI8 load_line_i8(const uint8_t* p) { return split_bytes(_mm512_loadu_si512(p)); }
static inline void store_line(uint8_t* p, LineI8 line, int more) {
  _mm512_storeu_si512(p, _mm512_add_epi8(join_bytes(line), _mm512_set1_epi8(static_cast<char>(more))));
}
// a where the mask is set, b elsewhere
static inline __m512i select_bits(__m512i a, __m512i b, int byte_mask) {
  return _mm512_ternarylogic_epi32(_mm512_set1_epi8(static_cast<char>(byte_mask)), a, b, 0xca);
}
template <int kBits, int kQuad>
static inline LineI8 join_line(const uint8_t* high, const uint8_t* low) {
  const __m512i upper = _mm512_loadu_si512(high);
  const __m512i lower = _mm512_loadu_si512(low);
  if constexpr (kBits == 4) {
    if constexpr (kQuad % 2 == 0) return split_bytes(select_bits(_mm512_slli_epi16(upper, 4), lower, 0xf0));
    return split_bytes(select_bits(upper, _mm512_srli_epi16(lower, 4), 0xf0));
  } else {
    const __m512i moved = kQuad % 2 == 0 ? _mm512_slli_epi16(upper, 2) : _mm512_srli_epi16(upper, 2);
    const __m512i rest = kQuad == 0 ? lower : _mm512_srli_epi16(lower, 2 * kQuad);
    return split_bytes(_mm512_and_si512(select_bits(moved, rest, 0x3c), _mm512_set1_epi8(0x3f)));
  }
}
struct LineI4 {
  LineI8 low, high;
};
static inline LineI4 load_line_i4(const uint8_t* p) {
  const __m512i all = _mm512_loadu_si512(p);
  return {split_bytes(_mm512_and_si512(all, _mm512_set1_epi8(15))),
          split_bytes(_mm512_and_si512(_mm512_srli_epi16(all, 4), _mm512_set1_epi8(15)))};
}

static inline F16 f_load_first(const uint8_t* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16))};
}
static inline F16 f_load_second(const uint8_t* p) {
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), high))};
}

#if defined(__AVX512BF16__)
struct LineBf16 {
  __m512i v;
};
static inline LineBf16 load_line_bf16(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
struct PairBf16 {
  __m512i v;
};
static inline PairBf16 load_pair_bf16(const uint16_t* p) { return {broadcast4(p)}; }
static inline F16 dot_bf16(F16 acc, LineBf16 w, PairBf16 a) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(acc.v) : "v"(w.v), "v"(a.v));
  return acc;
}
#else
struct LineBf16 {
  __m512 first, second;
};
static inline LineBf16 load_line_bf16(const uint8_t* p) {
  const __m512i all = _mm512_loadu_si512(p);
  return {_mm512_castsi512_ps(_mm512_slli_epi32(all, 16)),
          _mm512_castsi512_ps(_mm512_and_si512(all, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
}
struct PairBf16 {
  __m512 first, second;
};
static inline PairBf16 load_pair_bf16(const uint16_t* p) {
  const __m512i all = broadcast4(p);
  return {_mm512_castsi512_ps(_mm512_slli_epi32(all, 16)),
          _mm512_castsi512_ps(_mm512_and_si512(all, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
}
static inline F16 dot_bf16(F16 acc, LineBf16 w, PairBf16 a) {
  acc = {_mm512_fmadd_ps(w.first, a.first, acc.v)};
  return {_mm512_fmadd_ps(w.second, a.second, acc.v)};
}
#endif

}  // namespace ernie::ERNIE_VARIANT
