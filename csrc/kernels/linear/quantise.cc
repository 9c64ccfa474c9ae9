#include "kernels/linear/quantise.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/bf16.h"
#include "kernels/linear/linear.h"

namespace ernie {
namespace {

// The smallest bfloat16 that is not below a positive finite value.
uint16_t bf16_not_below(float value) {
  const uint16_t nearest = float_to_bf16(value);
  return bf16_to_float(nearest) < value ? static_cast<uint16_t>(nearest + 1) : nearest;
}

// Largest magnitude; NaN if the group has a NaN or an infinity.
float largest(const float* weights, size_t n) {
  float top = 0.0f, poison = 0.0f;
  for (size_t i = 0; i < n; ++i) top = std::fmax(top, std::fabs(weights[i])), poison += weights[i] * 0.0f;
  return top + poison;
}

// Sets the scale for codes up to `most`, and codes and factors to zero; false if they stay so.
bool begin(const float* weights, size_t n, float most, GroupCodes* out) {
  std::memset(out, 0, sizeof *out);
  const float top = largest(weights, n);
  if (!std::isfinite(top)) {
    out->scale = 0x7fc0;
    return false;
  }
  if (!(top / most > 1e-37f)) return false;  // the inverse would not be finite
  out->scale = bf16_not_below(top / most);
  return true;
}

int8_t code(float weight, float inverse, float low, float high) {
  return static_cast<int8_t>(std::lrintf(std::min(std::max(weight * inverse, low), high)));
}

// Squared error of 16 weights with that step, codes from -8 to 7.
float error(const float* weights, size_t n, float step) {
  const float inverse = 1.0f / step;
  float sum = 0.0f;
  for (size_t i = 0; i < n; ++i) {
    const float q = std::nearbyint(std::min(std::max(weights[i] * inverse, -8.0f), 7.0f));
    const float off = weights[i] - q * step;
    sum += off * off;
  }
  return sum;
}

// The factor with the least error, and at that one near the smallest that clips nothing.
int best_factor(const float* weights, size_t n, float scale) {
  float top = 0.0f;
  for (size_t i = 0; i < n; ++i) top = std::max(top, weights[i] < 0 ? weights[i] / -8.0f : weights[i] / 7.0f);
  const int enough = std::min(15, static_cast<int>(std::ceil(top / scale)));
  int best = enough;
  float least = INFINITY;
  for (int factor = enough; factor >= std::max(1, enough - 3); --factor) {
    const float e = error(weights, n, scale * static_cast<float>(factor));
    if (e < least) least = e, best = factor;
  }
  return best;
}

// Codes from -most to most.
void quantise_even(const float* weights, size_t n, float most, GroupCodes* out) {
  if (!begin(weights, n, most, out)) return;
  const float inverse = 1.0f / bf16_to_float(out->scale);
  for (size_t i = 0; i < n; ++i) out->codes[i] = code(weights[i], inverse, -most, most);
}

}  // namespace

void quantise_int8(const float* weights, size_t n, GroupCodes* out) { quantise_even(weights, n, 127.0f, out); }

void quantise_int6(const float* weights, size_t n, GroupCodes* out) { quantise_even(weights, n, 31.0f, out); }

void quantise_int4(const float* weights, size_t n, GroupCodes* out) {
  // The widest 16 columns take the factor 15, so the scale is a 15th of their step; they may use the code -8 for one
  // sign only, so 7.5 stands for the middle of both.
  if (!begin(weights, n, 7.5f * 15.0f, out)) return;
  const float scale = bf16_to_float(out->scale);
  for (size_t at = 0; at < n; at += kSubColumns) {
    const size_t some = std::min(kSubColumns, n - at);
    const int factor = best_factor(weights + at, some, scale);
    out->subs[at / kSubColumns] = static_cast<uint8_t>(factor);
    if (factor == 0) continue;
    const float inverse = 1.0f / (scale * static_cast<float>(factor));
    for (size_t i = at; i < at + some; ++i) out->codes[i] = code(weights[i], inverse, -8.0f, 7.0f);
  }
}

}  // namespace ernie
