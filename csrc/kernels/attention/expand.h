#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/bf16.h"
#include "kernels/attention/layout.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace ernie::ERNIE_VARIANT {

// Makes two lines of bfloat16 out of 64 bytes of int8: exact, since seven bits fit its fraction.
#if defined(__AVX512VBMI__)
// The two bytes of bfloat16 of 0 .. 127.
struct Bf16OfByte {
  alignas(64) uint8_t low[128], high[128];
};
static constexpr Bf16OfByte make_bf16_of_byte() {
  Bf16OfByte table{};
  for (unsigned i = 1; i < 128; ++i) {
    unsigned exponent = 0;
    while ((i >> exponent) > 1) ++exponent;
    const unsigned bits = ((127 + exponent) << 7) | ((i << (7 - exponent)) & 0x7f);
    table.low[i] = static_cast<uint8_t>(bits & 0xff);
    table.high[i] = static_cast<uint8_t>(bits >> 8);
  }
  return table;
}
static constexpr Bf16OfByte kBf16OfByte = make_bf16_of_byte();

static inline void expand_two_lines(const uint8_t* from, uint8_t* to) {
  const __m512i x = _mm512_loadu_si512(from);
  const __m512i index = _mm512_abs_epi8(x);
  const __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(kBf16OfByte.low), index,
                                               _mm512_load_si512(kBf16OfByte.low + 64));
  __m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(kBf16OfByte.high), index,
                                          _mm512_load_si512(kBf16OfByte.high + 64));
  high = _mm512_ternarylogic_epi32(high, x, _mm512_set1_epi8(-128), 0xf8);  // high | (x & sign)
  _mm512_storeu_si512(to, _mm512_unpacklo_epi8(low, high));
  _mm512_storeu_si512(to + 64, _mm512_unpackhi_epi8(low, high));
}
#elif defined(__AVX512BW__)
// Words with the byte in their upper half to bfloat16.
static inline __m512i bf16_of_high_bytes(__m512i words) {
  const __m512 even = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(words, 16), 24));
  const __m512 odd = _mm512_cvtepi32_ps(_mm512_srai_epi32(words, 24));
  const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(even), 16);
  return _mm512_ternarylogic_epi32(low, _mm512_castps_si512(odd), _mm512_set1_epi32(static_cast<int>(0xffff0000u)), 0xf8);
}
static inline void expand_two_lines(const uint8_t* from, uint8_t* to) {
  const __m512i x = _mm512_loadu_si512(from);
  const __m512i zero = _mm512_setzero_si512();
  _mm512_storeu_si512(to, bf16_of_high_bytes(_mm512_unpacklo_epi8(zero, x)));
  _mm512_storeu_si512(to + 64, bf16_of_high_bytes(_mm512_unpackhi_epi8(zero, x)));
}
#elif defined(__AVX2__)
static inline __m256i bf16_of_high_bytes(__m256i words) {
  const __m256 even = _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(words, 16), 24));
  const __m256 odd = _mm256_cvtepi32_ps(_mm256_srai_epi32(words, 24));
  return _mm256_blend_epi16(_mm256_srli_epi32(_mm256_castps_si256(even), 16), _mm256_castps_si256(odd), 0xaa);
}
static inline void expand_two_lines(const uint8_t* from, uint8_t* to) {
  const __m256i zero = _mm256_setzero_si256();
  for (size_t half = 0; half < 64; half += 32) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + half));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + half), bf16_of_high_bytes(_mm256_unpacklo_epi8(zero, x)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 64 + half), bf16_of_high_bytes(_mm256_unpackhi_epi8(zero, x)));
  }
}
#else
static inline void expand_two_lines(const uint8_t* from, uint8_t* to) {
  for (size_t line = 0; line < 2; ++line) {
    for (size_t word = 0; word < 32; ++word) {
      const uint16_t bits = float_to_bf16(static_cast<int8_t>(from[int8_offset(line, word)]));
      std::memcpy(to + line * 64 + word * 2, &bits, 2);
    }
  }
}
#endif

}  // namespace ernie::ERNIE_VARIANT
