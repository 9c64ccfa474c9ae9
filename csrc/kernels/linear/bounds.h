// Between what the upper plane of a nested matrix says a row's products can be.
//
// The lower bits of a code are taken as their mean; what that leaves out is a sum over the columns of (bits - mean) *
// activation, whose spread is known if bits are as good as random. `kBoundSigmas` times that spread is what bounds allow
// for. Not a proof: whoever relies on it looks at the exact products of the rows that it keeps (model/nested_head.cc).
#pragma once

#include <cmath>

#include "kernels/linear/ahead.h"
#include "kernels/linear/linear.h"
#include "kernels/linear/quantised.h"
#include "kernels/linear/row.h"

namespace ernie::ERNIE_VARIANT {

// A lane that is no number makes both bounds a NaN.
static inline void bound_lanes(F16 total, F16 spread, size_t lanes, float* lower, float* upper) {
  const F16 margin = f_sqrt(spread);
  const float poison = f_sum(f_mul(f_keep(f_add(total, margin), lanes, f_zero()), f_zero()));
  const F16 never = f_set1(-INFINITY);
  *lower = f_maximum(f_keep(f_sub(total, margin), lanes, never)) + poison;
  *upper = f_maximum(f_keep(f_add(total, margin), lanes, never)) + poison;
}

// The sum of the upper plane over one group of columns, a multiple of 16.
static inline I16 dot_upper(const uint8_t* weights, const int8_t* x, size_t cols) {
  I16 acc[4] = {i_set1(0), i_set1(0), i_set1(0), i_set1(0)};
  for (size_t k = 0; k < cols; k += 16, weights += 2 * kLineBytes) {
    lines_ahead<2>(weights);
    for (int half = 0; half < 2; ++half) {
      const LineI4 line = load_line_i4(weights + half * kLineBytes);
      acc[2 * half] = dot_i8_at(acc[2 * half], line.low, x + k + 8 * half);
      acc[2 * half + 1] = dot_i8_at(acc[2 * half + 1], line.high, x + k + 8 * half + 4);
    }
  }
  return i_add(i_add(acc[0], acc[1]), i_add(acc[2], acc[3]));
}

static inline void bound_panel(const Matrix& w, const Rows& x, const float* spread, size_t row, size_t panel, size_t limit,
                               float* lower, float* upper) {
  const uint8_t* base = w.data + panel * w.panel_bytes;
  const uint8_t* weights = base + w.weights_at;
  const int8_t* xp = reinterpret_cast<const int8_t*>(x.data + row * x.stride);
  const float step = static_cast<float>(1 << low_bits(w.precision));
  // A code is step * (upper - 8) + lower bits, and offsets are -128 * sum of activations.
  const float bias = (8.0f * step - 0.5f * (step - 1.0f)) / 128.0f;
  F16 total[1][1], square = f_zero();
  add_exact(w, base, x, row, total);
  header_ahead(base, w.weights_at);
  for (size_t g = 0; g < x.groups; ++g) {
    const size_t cols = w.group_cols(g);
    const I16 sum = dot_upper(weights, xp, cols);
    const F16 rest = f_set1(static_cast<float>(x.offsets[row * x.groups + g]) * bias);
    const F16 scale = f_load_bf16(reinterpret_cast<const uint16_t*>(base + w.scales_of(g)));
    const F16 both = f_mul(scale, f_set1(x.scales[row * x.groups + g]));
    total[0][0] = f_fma(f_fma(i_to_float(sum), f_set1(step), rest), both, total[0][0]);
    square = f_fma(f_mul(scale, scale), f_set1(spread[g]), square);
    weights += cols / 8 * kLineBytes;
    xp += cols;
  }
  const size_t first = panel * kPanelRows;
  const size_t lanes = limit <= first ? 0 : limit - first < kPanelRows ? limit - first : kPanelRows;
  bound_lanes(total[0][0], square, lanes, lower, upper);
}

static void bound(const Matrix& w, const Rows& x, const float* spread, size_t row, size_t panel, size_t panels, size_t limit,
                  float* lower, float* upper) {
  for (size_t p = 0; p < panels; ++p) bound_panel(w, x, spread, row, panel + p, limit, lower + p, upper + p);
}

}  // namespace ernie::ERNIE_VARIANT
