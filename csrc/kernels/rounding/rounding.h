// Codes for rows of weights, chosen one column after the other so that each column makes up for the rounding of those
// before it (Frantar et al. 2022, "GPTQ").
//
// Of a row w, codes q shall make (w - q) H (w - q)^T small, where H = R R^T is the Gram matrix of the layer's inputs and R
// is upper triangular. Column j of (w - q) R then depends on columns up to j alone, so that column j is best rounded at
//   target[j] = w[j] + sum over i < j of (w[i] - q[i]) R[i][j] / R[j][j],
// and costs ((target[j] - q[j]) R[j][j])^2. This is GPTQ in the form of Babai's nearest plane (Chen et al. 2025): it needs
// no inverse of H.
//
// Sixteen rows are a panel, [cols][16] floats: every lane is a row and none knows of the others.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ernie {

struct Rounding {
  size_t cols = 0;
  size_t group = 0;         // columns that share a scale: a multiple of 16
  float low = 0, high = 0;  // codes are whole numbers from low to high
  bool factors = false;     // 4 bits: each 16 columns have a factor from 0 to 15 beside the scale
  const float* reach = nullptr;  // R transposed, [cols][cols], of which row j up to column j counts; null: only weigh
  const float* weigh = nullptr;  // [cols]: R[j][j]^2, or how much the error of a column counts
  const uint8_t* exact = nullptr;  // [cols]: 1 for columns that stay bfloat16
  const float* clips = nullptr;  // scales that are tried, as shares of the one that clips nothing
  size_t clip_count = 0;
};

// What becomes of a panel: [cols], [groups], [ceil(cols / 16)] and [cols] times 16 rows; exact: bfloat16 weights, set in
// exact columns only. Codes of exact columns are zero.
struct RoundedPanel {
  int8_t* codes = nullptr;
  uint16_t* scales = nullptr;
  uint8_t* subs = nullptr;
  uint16_t* exact = nullptr;
};

inline size_t rounding_scratch_floats(size_t cols) { return 2 * 16 * (cols + 16); }

// `weights` is [cols][16], finite.
using RoundPanelFn = void (*)(const Rounding& how, const float* weights, const RoundedPanel& out, float* scratch);

// Rows that are solved together: four panels, which share what is read of R.
inline constexpr int kSolvePanels = 4;
inline constexpr size_t kSolveLanes = 16 * kSolvePanels;

// Solves y H = b, H = R R^T: `rows` holds b and then y, [n][kSolveLanes]. `reach` as above, [n][n].
using SolvePanelsFn = void (*)(const float* reach, size_t n, float* rows);

// Factors H = R R^T from the last rows up. A panel here is 16 columns of R transposed, [n][16], for rows that are done, and
// of H for those that are not.

// block[i][lane] = panel[row + i][lane] - sum over k from row + 16 to n of left[k][i] * panel[k][lane]: what is left of 16
// rows of H; `left` is the panel of columns row..row + 15.
using FactorUpdateFn = void (*)(const float* left, const float* panel, size_t row, size_t n, float* block);

// The 16 x 16 block on the diagonal, in place; false if it isn't positive.
using FactorDiagonalFn = bool (*)(float* block);

// A block of 16 rows beside it, in place, given the factored block on the diagonal.
using FactorRowsFn = void (*)(const float* diagonal, float* block);

struct RoundingKernels {
  RoundPanelFn round_panel;
  SolvePanelsFn solve_panels;
  FactorUpdateFn factor_update;
  FactorDiagonalFn factor_diagonal;
  FactorRowsFn factor_rows;
};

}  // namespace ernie
