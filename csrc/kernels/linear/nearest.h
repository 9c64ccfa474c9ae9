// Chooses codes by nearest rounding: see quantise.h.
#pragma once

#include <cstring>

#include "base/bf16.h"
#include "kernels/linear/quantise.h"

namespace ernie::ERNIE_VARIANT {

// The smallest bfloat16 that is not below a positive finite value.
static inline uint16_t bf16_not_below(float value) {
  const uint16_t nearest = float_to_bf16(value);
  return bf16_to_float(nearest) < value ? static_cast<uint16_t>(nearest + 1) : nearest;
}

// Largest magnitude; NaN if the group has a NaN or an infinity.
static inline float largest_weight(const float* weights, size_t n) {
  F16 top = f_zero(), poison = f_zero();
  for (size_t i = 0; i < n; i += 16) {
    const F16 w = f_load(weights + i);
    top = f_max(f_abs(w), top);
    poison = f_add(poison, f_mul(w, f_zero()));
  }
  return f_maximum(top) + f_sum(poison);
}

// Sets the scale for codes up to `most`, and codes and factors to zero; false if they stay so.
static inline bool begin_group(const float* weights, size_t n, float most, GroupCodes* out) {
  std::memset(out, 0, sizeof *out);
  const float top = largest_weight(weights, n);
  if (top != top) {
    out->scale = 0x7fc0;
    return false;
  }
  if (!(top / most > 1e-37f)) return false;  // the inverse would not be finite
  out->scale = bf16_not_below(top / most);
  return true;
}

static inline F16 nearest_codes(F16 weights, F16 inverse, float low, float high) {
  return f_round(f_min(f_max(f_mul(weights, inverse), f_set1(low)), f_set1(high)));
}

// Squared error of 16 weights with that step, codes from -8 to 7.
static inline float error_of_step(F16 weights, float step) {
  const F16 codes = nearest_codes(weights, f_set1(1.0f / step), -8.0f, 7.0f);
  const F16 off = f_sub(weights, f_mul(codes, f_set1(step)));
  return f_sum(f_mul(off, off));
}

// The factor of 16 columns with the least error, at that one near the smallest that clips nothing.
static inline int best_factor_of(F16 weights, float scale) {
  const float above = f_maximum(weights) / 7.0f, below = f_maximum(f_sub(f_zero(), weights)) / 8.0f;
  const float steps = (above > below ? above : below) / scale;
  if (!(steps > 0.0f)) return 0;
  int enough = steps < 15.0f ? static_cast<int>(steps) : 15;
  if (static_cast<float>(enough) < steps && enough < 15) ++enough;
  int best = enough;
  float least = INFINITY;
  for (int factor = enough; factor >= 1 && factor > enough - 4; --factor) {
    const float error = error_of_step(weights, scale * static_cast<float>(factor));
    if (error < least) least = error, best = factor;
  }
  return best;
}

// Codes from -most to most.
static inline void quantise_even(const float* weights, size_t n, float most, GroupCodes* out) {
  if (!begin_group(weights, n, most, out)) return;
  const F16 inverse = f_set1(1.0f / bf16_to_float(out->scale));
  for (size_t i = 0; i < n; i += 16) f_store_s8(out->codes + i, nearest_codes(f_load(weights + i), inverse, -most, most));
}

static inline void quantise_int4(const float* weights, size_t n, GroupCodes* out) {
  // The widest 16 columns take the factor 15, so the scale is a 15th of their step; they may use the code -8 for one
  // sign only, so 7.5 stands for the middle of both.
  if (!begin_group(weights, n, 7.5f * 15.0f, out)) return;
  const float scale = bf16_to_float(out->scale);
  for (size_t at = 0; at < n; at += kSubColumns) {
    const F16 some = f_load(weights + at);
    const int factor = best_factor_of(some, scale);
    out->subs[at / kSubColumns] = static_cast<uint8_t>(factor);
    if (factor == 0) continue;
    const F16 inverse = f_set1(1.0f / (scale * static_cast<float>(factor)));
    f_store_s8(out->codes + at, nearest_codes(some, inverse, -8.0f, 7.0f));
  }
}

static void quantise(Precision precision, const float* weights, size_t n, GroupCodes* out) {
  if (precision == Precision::int4) return quantise_int4(weights, n, out);
  quantise_even(weights, n, precision == Precision::nested6 ? 31.0f : 127.0f, out);
}

}  // namespace ernie::ERNIE_VARIANT
