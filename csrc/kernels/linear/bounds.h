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

namespace ernie::ERNIE_VARIANT {

// A lane that is no number makes both bounds a NaN.
static inline void bound_lanes(F16 total, F16 spread, size_t lanes, float* lower, float* upper) {
  const F16 margin = f_sqrt(spread);
  const float poison = f_sum(f_mul(f_keep(f_add(total, margin), lanes, f_zero()), f_zero()));
  const F16 never = f_set1(-INFINITY);
  *lower = f_maximum(f_keep(f_sub(total, margin), lanes, never)) + poison;
  *upper = f_maximum(f_keep(f_add(total, margin), lanes, never)) + poison;
}

// Sums of the upper plane over one group of columns.
template <int P>
static inline void dot_upper(const uint8_t* weights, size_t panel_bytes, const int8_t* x, size_t cols, LinesAhead& ahead,
                             I16 (&acc)[P]) {
  for (int p = 0; p < P; ++p) acc[p] = i_set1(0);
  for (size_t k = 0; k < cols; k += 8, weights += kLineBytes) {
    if (k % 16 == 0) ahead.step();
    const Quad first = load_quad(x + k), second = load_quad(x + k + 4);
    for (int p = 0; p < P; ++p) {
      const LineI4 line = load_line_i4(weights + p * panel_bytes);
      acc[p] = dot_i8(dot_i8(acc[p], line.low, first), line.high, second);
    }
  }
}

template <int P>
static inline void bound_panels(const Matrix& w, const Rows& x, const float* spread, size_t row, size_t panel,
                                size_t limit, LinesAhead ahead, float* lower, float* upper) {
  const uint8_t* base = w.data + panel * w.panel_bytes;
  const uint8_t* weights = base + w.weights_at;
  const int8_t* xp = reinterpret_cast<const int8_t*>(x.data + row * x.stride);
  const float step = static_cast<float>(1 << low_bits(w.precision));
  // A code is step * (upper - 8) + lower bits, and offsets are -128 * sum of activations.
  const float bias = (8.0f * step - 0.5f * (step - 1.0f)) / 128.0f;
  F16 total[P][1], square[P];
  add_exact(w, base, x, row, total);
  for (int p = 0; p < P; ++p) square[p] = f_zero();
  for (size_t g = 0; g < x.groups; ++g) {
    I16 acc[P];
    const size_t cols = w.group_cols(g);
    dot_upper<P>(weights, w.panel_bytes, xp, cols, ahead, acc);
    const F16 rest = f_set1(static_cast<float>(x.offsets[row * x.groups + g]) * bias);
    for (int p = 0; p < P; ++p) {
      const F16 scale = f_load_bf16(reinterpret_cast<const uint16_t*>(base + p * w.panel_bytes + w.scales_of(g)));
      const F16 both = f_mul(scale, f_set1(x.scales[row * x.groups + g]));
      total[p][0] = f_fma(f_fma(i_to_float(acc[p]), f_set1(step), rest), both, total[p][0]);
      square[p] = f_fma(f_mul(scale, scale), f_set1(spread[g]), square[p]);
    }
    weights += cols / 8 * kLineBytes;
    xp += cols;
  }
  for (int p = 0; p < P; ++p) {
    const size_t first = (panel + p) * kPanelRows;
    const size_t lanes = limit <= first ? 0 : limit - first < kPanelRows ? limit - first : kPanelRows;
    bound_lanes(total[p][0], square[p], lanes, lower + p, upper + p);
  }
}

static void bound(const Matrix& w, const Rows& x, const float* spread, size_t row, size_t panel, size_t panels,
                  size_t next, size_t limit, float* lower, float* upper) {
  size_t p = 0;
  for (; p + kTilePanels <= panels; p += kTilePanels) {
    const size_t then = p + kTilePanels < panels ? panel + p + kTilePanels : next;
    bound_panels<kTilePanels>(w, x, spread, row, panel + p, limit, upper_ahead(w, w.cols / 16, then, kTilePanels),
                              lower + p, upper + p);
  }
  for (; p < panels; ++p) bound_panels<1>(w, x, spread, row, panel + p, limit, {}, lower + p, upper + p);
}

}  // namespace ernie::ERNIE_VARIANT
