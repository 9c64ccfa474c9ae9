// Sixteen lanes in plain C++: the meaning of every operation, and what runs where nothing better does.
//
// Each simd header defines the same names inside ERNIE_VARIANT, the namespace of one instruction set. Nothing here may
// be shared between variants: a function compiled for AVX-512 must never be the one that the linker keeps for all.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/bf16.h"

namespace ernie::ERNIE_VARIANT {

// Rows and 16-row panels that one tile of the matrix kernels keeps in registers.
inline constexpr int kTileRows = 2;
inline constexpr int kTilePanels = 1;

struct F16 {
  float v[16];
};
struct I16 {
  int32_t v[16];
};

#define ERNIE_LANES for (int i = 0; i < 16; ++i)

static inline F16 f_set1(float x) {
  F16 r;
  ERNIE_LANES r.v[i] = x;
  return r;
}
static inline F16 f_zero() { return f_set1(0.0f); }
static inline F16 f_load(const float* p) {
  F16 r;
  std::memcpy(r.v, p, sizeof r.v);
  return r;
}
static inline void f_store(float* p, F16 a) { std::memcpy(p, a.v, sizeof a.v); }
static inline F16 f_load_bf16(const uint16_t* p) {
  F16 r;
  ERNIE_LANES r.v[i] = bf16_to_float(p[i]);
  return r;
}
static inline void f_store_bf16(uint16_t* p, F16 a) { ERNIE_LANES p[i] = float_to_bf16(a.v[i]); }
// a, then b. For values that are zero or normal: what becomes of denormals is the instruction set's own.
static inline void f_store_bf16_normal(uint16_t* p, F16 a, F16 b) {
  f_store_bf16(p, a);
  f_store_bf16(p + 16, b);
}
// The first n lanes of a, n from 0 to 16; `rest` in the others.
static inline F16 f_keep(F16 a, size_t n, F16 rest) {
  ERNIE_LANES a.v[i] = static_cast<size_t>(i) < n ? a.v[i] : rest.v[i];
  return a;
}
static inline F16 f_add(F16 a, F16 b) {
  ERNIE_LANES a.v[i] = a.v[i] + b.v[i];
  return a;
}
static inline F16 f_sub(F16 a, F16 b) {
  ERNIE_LANES a.v[i] = a.v[i] - b.v[i];
  return a;
}
static inline F16 f_mul(F16 a, F16 b) {
  ERNIE_LANES a.v[i] = a.v[i] * b.v[i];
  return a;
}
static inline F16 f_div(F16 a, F16 b) {
  ERNIE_LANES a.v[i] = a.v[i] / b.v[i];
  return a;
}
// f_max and f_min give b where either is a NaN, so that a NaN in b stays and one in a goes.
static inline F16 f_max(F16 a, F16 b) {
  ERNIE_LANES a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
  return a;
}
static inline F16 f_min(F16 a, F16 b) {
  ERNIE_LANES a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i];
  return a;
}
static inline F16 f_abs(F16 a) {
  ERNIE_LANES a.v[i] = a.v[i] < 0 ? -a.v[i] : a.v[i];
  return a;
}
// a * b + c
static inline F16 f_fma(F16 a, F16 b, F16 c) {
  ERNIE_LANES c.v[i] = a.v[i] * b.v[i] + c.v[i];
  return c;
}
// Adding and taking away 1.5 * 2^23 rounds to the nearest whole number, ties to even, for |x| < 2^22.
static inline F16 f_round(F16 a) {
  ERNIE_LANES {
    volatile float shifted = a.v[i] + 12582912.0f;
    a.v[i] = shifted - 12582912.0f;
  }
  return a;
}
// 2^n for whole n from -126 to 127; anything for a NaN. The last bits of 1.5 * 2^23 + n are those of the whole number n,
// which spares a conversion that C++ does not define for a NaN.
static inline F16 f_pow2(F16 n) {
  ERNIE_LANES {
    const float shifted = n.v[i] + 12582912.0f;
    uint32_t bits;
    std::memcpy(&bits, &shifted, 4);
    bits = (bits - 0x4b400000u + 127) << 23;
    std::memcpy(&n.v[i], &bits, 4);
  }
  return n;
}
// p * 2^n for t = n + 1.5 * 2^23, in the exponent's bits: p and the result are normal, or p is a NaN whose last 9 bits are 0.
static inline F16 f_scale(F16 p, F16 t) {
  ERNIE_LANES {
    uint32_t bits, power;
    std::memcpy(&bits, &p.v[i], 4);
    std::memcpy(&power, &t.v[i], 4);
    bits += power << 23;
    std::memcpy(&p.v[i], &bits, 4);
  }
  return p;
}
// Sums and maxima over the lanes always pair lane i with lane i + 8, then i + 4, i + 2, i + 1.
static inline float f_sum(F16 a) {
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) a.v[i] = a.v[i] + a.v[i + half];
  return a.v[0];
}
static inline F16 f_sqrt(F16 a) {
  ERNIE_LANES a.v[i] = std::sqrt(a.v[i]);
  return a;
}
static inline float f_maximum(F16 a) {
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) a.v[i] = a.v[i] > a.v[i + half] ? a.v[i] : a.v[i + half];
  return a.v[0];
}
// Stores whole numbers from -127 to 127 as bytes; what a NaN becomes is not defined, but harmless.
static inline void f_store_s8(int8_t* p, F16 a) {
  a = f_max(f_min(a, f_set1(127.0f)), f_set1(-127.0f));
  ERNIE_LANES p[i] = static_cast<int8_t>(a.v[i]);
}

static inline I16 i_set1(int32_t x) {
  I16 r;
  ERNIE_LANES r.v[i] = x;
  return r;
}
static inline I16 i_load(const void* p) {
  I16 r;
  std::memcpy(r.v, p, sizeof r.v);
  return r;
}
static inline void i_store(void* p, I16 a) { std::memcpy(p, a.v, sizeof a.v); }
static inline I16 i_add(I16 a, I16 b) {
  ERNIE_LANES a.v[i] += b.v[i];
  return a;
}
static inline I16 i_mul(I16 a, I16 b) {
  ERNIE_LANES a.v[i] *= b.v[i];
  return a;
}
// a + b * c, for lanes of b that 16 bits hold and lanes of c from 0 to 2^15 - 1.
static inline I16 i_add_short(I16 a, I16 b, I16 c) {
  ERNIE_LANES a.v[i] += b.v[i] * c.v[i];
  return a;
}
static inline I16 i_max(I16 a, I16 b) {
  ERNIE_LANES a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
  return a;
}
static inline int32_t i_maximum(I16 a) {
  int32_t most = a.v[0];
  ERNIE_LANES most = a.v[i] > most ? a.v[i] : most;
  return most;
}
// (a >> shift) & mask, of unsigned lanes
static inline I16 i_field(I16 a, int shift, int32_t mask) {
  ERNIE_LANES a.v[i] = static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) >> shift) & mask;
  return a;
}
// Bits 4j..4j+3.
template <int j>
static inline I16 i_nibble(I16 a) {
  return i_field(a, 4 * j, 15);
}
static inline F16 i_to_float(I16 a) {
  F16 r;
  ERNIE_LANES r.v[i] = static_cast<float>(a.v[i]);
  return r;
}

// One packed line: 64 bytes, four for each of 16 rows.
struct LineI8 {
  uint8_t v[64];
};
static inline LineI8 load_line_i8(const uint8_t* p) {
  LineI8 r;
  std::memcpy(r.v, p, 64);
  return r;
}
// A line of nibbles: the low and the high ones.
struct LineI4 {
  LineI8 low, high;
};
static inline LineI4 load_line_i4(const uint8_t* p) {
  LineI4 r;
  for (int i = 0; i < 64; ++i) r.low.v[i] = p[i] & 15, r.high.v[i] = p[i] >> 4;
  return r;
}
// The int8 line 128 + factor * (nibble - 8) of nibbles shifted by `shift` bits (0 or 4) and a factor a row.
static inline void expand_line(const uint8_t* nibbles, int shift, I16 factor, uint8_t* out) {
  ERNIE_LANES for (int j = 0; j < 4; ++j) {
    const int code = (nibbles[4 * i + j] >> shift & 15) - 8;
    out[4 * i + j] = static_cast<uint8_t>(128 + factor.v[i] * code);
  }
}
// A line of codes out of two planes: nibbles of `high`, the high ones for odd quads, are its upper bits; the lower ones,
// kBits of them, are nibbles of `low` likewise, or in two bits at 2 * kQuad.
template <int kBits, int kQuad>
static inline LineI8 join_line(const uint8_t* high, const uint8_t* low) {
  constexpr int kLow = kBits == 4 ? kQuad % 2 * 4 : 2 * kQuad;
  LineI8 r;
  for (int i = 0; i < 64; ++i)
    r.v[i] = static_cast<uint8_t>((high[i] >> kQuad % 2 * 4 & 15) << kBits | (low[i] >> kLow & ((1 << kBits) - 1)));
  return r;
}
// With a number added to every byte.
static inline void store_line(uint8_t* p, const LineI8& line, int more) {
  for (int i = 0; i < 64; ++i) p[i] = static_cast<uint8_t>(line.v[i] + more);
}
struct Quad {
  int8_t v[4];
};
static inline Quad load_quad(const int8_t* p) {
  Quad r;
  std::memcpy(r.v, p, 4);
  return r;
}
// acc + the dot product of four unsigned bytes of each row with the same four signed bytes
static inline I16 dot_i8(I16 acc, LineI8 w, Quad a) {
  ERNIE_LANES for (int j = 0; j < 4; ++j) acc.v[i] += static_cast<int32_t>(w.v[4 * i + j]) * a.v[j];
  return acc;
}
// The same with the four signed bytes at `a`.
static inline I16 dot_i8_at(I16 acc, LineI8 w, const int8_t* a) { return dot_i8(acc, w, load_quad(a)); }

struct LineBf16 {
  uint16_t v[32];
};
static inline LineBf16 load_line_bf16(const uint8_t* p) {
  LineBf16 r;
  std::memcpy(r.v, p, 64);
  return r;
}
// The first and the second value of every pair, as float32.
static inline F16 f_load_first(const uint8_t* p) {
  F16 r;
  ERNIE_LANES {
    uint16_t bits;
    std::memcpy(&bits, p + 4 * i, 2);
    r.v[i] = bf16_to_float(bits);
  }
  return r;
}
static inline F16 f_load_second(const uint8_t* p) {
  F16 r;
  ERNIE_LANES {
    uint16_t bits;
    std::memcpy(&bits, p + 4 * i + 2, 2);
    r.v[i] = bf16_to_float(bits);
  }
  return r;
}
struct PairBf16 {
  float v[2];
};
static inline PairBf16 load_pair_bf16(const uint16_t* p) { return {{bf16_to_float(p[0]), bf16_to_float(p[1])}}; }
// acc + both products. What is rounded in between, and whether denormals count, is the instruction set's own: portable
// rounds every product and sum, AVX2 and AVX-512 fuse each product with its sum, vdpbf16ps begins with the second product
// and takes denormals as zero. Within one variant the result depends on the operands alone.
static inline F16 dot_bf16(F16 acc, LineBf16 w, PairBf16 a) {
  ERNIE_LANES {
    acc.v[i] = bf16_to_float(w.v[2 * i]) * a.v[0] + acc.v[i];
    acc.v[i] = bf16_to_float(w.v[2 * i + 1]) * a.v[1] + acc.v[i];
  }
  return acc;
}

#undef ERNIE_LANES

}  // namespace ernie::ERNIE_VARIANT
