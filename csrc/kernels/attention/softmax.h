#pragma once

#include <cmath>

#include "kernels/attention/attention.h"

namespace ernie::ERNIE_VARIANT {

inline constexpr float kLowest = -3.0e38f;  // below every score

// 2^x for x up to 127; below -126 it is 2^-126, a NaN stays. Minimax polynomial of 2^r, |r| <= 1/2, of degree 5 with
// p(0) = 1: whole numbers give exact powers. Relative error below 1e-7 before rounding.
static inline F16 f_exp2(F16 x) {
  x = f_max(f_set1(-126.0f), x);
  const F16 n = f_round(x);
  const F16 r = f_sub(x, n);
  F16 p = f_set1(1.3264701e-3f);
  p = f_fma(p, r, f_set1(9.6715118e-3f));
  p = f_fma(p, r, f_set1(5.5507341e-2f));
  p = f_fma(p, r, f_set1(2.4022242e-1f));
  p = f_fma(p, r, f_set1(6.9314698e-1f));
  p = f_fma(p, r, f_set1(1.0f));
  return f_mul(p, f_pow2(n));
}

// The same for weights that are rounded to bfloat16, of degree 3: relative error below 1.1e-4, a twentieth of what
// rounding does. Not below 2^-64, so that an int8
// value's scale leaves no denormal, which is slow. A NaN must come from bfloat16, with zeros in its last bits.
static inline F16 f_exp2_rough(F16 x) {
  const F16 magic = f_set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
  x = f_max(f_set1(-64.0f), x);
  const F16 t = f_add(x, magic);
  const F16 r = f_sub(x, f_sub(t, magic));
  F16 p = f_set1(5.5008931e-2f);
  p = f_fma(p, r, f_set1(2.4221100e-1f));
  p = f_fma(p, r, f_set1(6.9328293e-1f));
  p = f_fma(p, r, f_set1(1.0f));
  return f_scale(p, t);
}

// Scores of a tile of rows with a block of keys: [page][row][16 keys]. Weights: the same in float32; in bfloat16 two
// pages together, [pair of pages][row][32 keys], so that a row of a pair is one row of an AMX tile.
inline constexpr size_t kPageScores = kAttentionTile * kPageTokens;

static inline F16 weight_of(const float*, F16 x) { return f_exp2(x); }
static inline F16 weight_of(const uint16_t*, F16 x) { return f_exp2_rough(x); }
static inline void store_weights(float* weights, F16 even, F16 odd) {
  f_store(weights, even);
  f_store(weights + kPageScores, odd);
}
static inline void store_weights(uint16_t* weights, F16 even, F16 odd) { f_store_bf16_normal(weights, even, odd); }

// Scales of the int8 keys and values of a block's pages.
struct BlockScales {
  const float* keys[kAttentionBlock / kPageTokens];
  const float* values[kAttentionBlock / kPageTokens];
};

// The shift of one row: the largest of its first n scores, rounded. Scores of int8 keys are multiplied by their scales;
// those of the last page after the n-th become very low.
template <bool kScaled>
static inline float shift_of(float* scores, size_t n, const BlockScales& scales) {
  const size_t full = n / kPageTokens;
  F16 top[2] = {f_set1(kLowest), f_set1(kLowest)};
  for (size_t p = 0; p < full; ++p) {
    F16 s = f_load(scores + p * kPageScores);
    if constexpr (kScaled) f_store(scores + p * kPageScores, s = f_mul(s, f_load(scales.keys[p])));
    top[p % 2] = f_max(s, top[p % 2]);
  }
  if (const size_t tail = n % kPageTokens; tail > 0) {
    F16 s = f_load(scores + full * kPageScores);
    if constexpr (kScaled) s = f_mul(s, f_load(scales.keys[full]));
    s = f_keep(s, tail, f_set1(kLowest));
    f_store(scores + full * kPageScores, s);
    top[0] = f_max(s, top[0]);
  }
  float lane[16];
  f_store(lane, f_round(f_set1(f_maximum(f_max(top[0], top[1])))));
  return lane[0];
}

// Turns the scores of one row's first n keys into weights 2^(score - shift), and those of the rest of `pages`, an even
// number, into zeros. The sum it gives is of the weights before they are rounded.
template <typename T, bool kScaled>
static inline float weigh(const float* scores, size_t n, size_t pages, float shift, const BlockScales& scales, T* weights) {
  constexpr size_t kStep = 2 * kPageScores;
  const F16 down = f_set1(shift);
  F16 total[2] = {f_zero(), f_zero()};
  const auto one = [&](size_t page, size_t seen) {
    F16 e = weight_of(weights, f_sub(f_load(scores + page * kPageScores), down));
    if (seen < kPageTokens) e = f_keep(e, seen, f_zero());
    total[page % 2] = f_add(total[page % 2], e);
    if constexpr (kScaled) {
      e = f_mul(e, f_load(scales.values[page]));
      if (seen < kPageTokens) e = f_keep(e, seen, f_zero());
    }
    return e;
  };
  size_t p = 0;
  for (; (p + 2) * kPageTokens <= n; p += 2)
    store_weights(weights + p / 2 * kStep, one(p, kPageTokens), one(p + 1, kPageTokens));
  if (const size_t rest = n - p * kPageTokens; rest > kPageTokens) {
    store_weights(weights + p / 2 * kStep, one(p, kPageTokens), one(p + 1, rest - kPageTokens));
    p += 2;
  } else if (rest > 0) {
    store_weights(weights + p / 2 * kStep, one(p, rest), f_zero());
    p += 2;
  }
  for (; p < pages; p += 2) store_weights(weights + p / 2 * kStep, f_zero(), f_zero());
  return f_sum(f_add(total[0], total[1]));
}

// Brings two results to one shift, the larger, and gives the factors of both.
struct Factors {
  F16 old, add;
};
static inline Factors join_row(float* shift, float* sum, float new_shift, float new_sum) {
  const F16 before = f_set1(*shift), now = f_set1(new_shift);
  const F16 top = f_max(before, now);
  const Factors f = {f_exp2(f_sub(before, top)), f_exp2(f_sub(now, top))};
  float lanes[3][16];
  f_store(lanes[0], top), f_store(lanes[1], f.old), f_store(lanes[2], f.add);
  *shift = lanes[0][0];
  *sum = *sum * lanes[1][0] + new_sum * lanes[2][0];
  return f;
}
static inline void join_values(float* out, const float* add, const Factors& f, size_t n) {
  for (size_t j = 0; j < n; j += 16) f_store(out + j, f_fma(f_load(add + j), f.add, f_mul(f_load(out + j), f.old)));
}

static void join(const Attended& to, const Attended& from, size_t tokens, size_t heads, size_t padded_d) {
  for (size_t row = 0; row < tokens * heads; ++row) {
    if (from.sum[row] == 0.0f) continue;  // sees no key of this span; a sum of weights is at least 2^-126
    const size_t column = row % heads * padded_d;
    const Factors f = join_row(&to.shift[row], &to.sum[row], from.shift[row], from.sum[row]);
    join_values(to.out + row / heads * to.token_stride + column,
                from.out + row / heads * from.token_stride + column, f, padded_d);
  }
}

static void finish(const Attended& to, size_t tokens, size_t heads, size_t padded_d) {
  for (size_t row = 0; row < tokens * heads; ++row) {
    float* out = to.out + row / heads * to.token_stride + row % heads * padded_d;
    const F16 inverse = f_set1(1.0f / to.sum[row]);
    for (size_t j = 0; j < padded_d; j += 16) f_store(out + j, f_mul(f_load(out + j), inverse));
  }
}

}  // namespace ernie::ERNIE_VARIANT
