// Matrix times rows: out[m][n] = sum over k of W[n][k] * x[m][k].
//
// Packed layout, the same for every instruction set. Rows of W are cut into panels of 16; a panel is a run of 64-byte
// lines. A line of weights has 4 bytes of every row: one float32, two bfloat16 or four int8 along K, or eight int4 (its
// low nibbles are the first four columns, its high nibbles the next four). Panels lie in order, so one matrix is one
// stream.
//
// Nested matrices have codes of 6 or 8 bits in two planes: panels hold the upper four bits of every code, as int4 lines,
// and behind all panels lie the lower bits, panel by panel: for 8 bits as int4 lines, for 6 bits in lines of 16 columns,
// bits 2j and 2j+1 of every byte being columns 4j..4j+3. The upper plane alone bounds what a row can give (bounds.h).
//
// Quantised panels begin with what belongs to all of their lines:
//   exact    exact_count / 2 lines of bfloat16: columns that are kept as they are, in ascending order; their codes are zero
//   scales   one bfloat16 a row for each scale group of columns, [scale groups][16], rounded up to a whole line
//   subs     int4 only: a line for every 128 columns; nibble j of row r's four bytes is the factor of columns 16j..16j+15
//   weights  int8: the code + 128, unsigned. int4: the code + 8. nested8, nested6: (code + 128) / 16, (code + 32) / 4
// so that W[n][k] = scale * code (int8) or scale * sub * code (int4). An int4 panel expands exactly to an int8 panel
// whose codes are sub * code, from -120 to 105, and both give the same bits.
//
// Activations of a quantised matrix: exact columns in float32; the rest int8 with a scale for each row and group. A scale
// group of the weights is one or several groups of the activations.
//
// Order of summation, whatever the number of rows, panels or threads, which is what makes results independent of the
// batch: exact columns, then along K scale group by scale group. In one of those, the sums of the groups of activations,
// which are of integers and exact, are multiplied by their scales and added up in order; that, times the scale of the
// weights, is what the scale group adds.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ernie {

enum class Precision { fp32, bf16, int8, int4, nested8, nested6 };

constexpr bool is_quantised(Precision precision) { return precision >= Precision::int8; }
constexpr bool is_nested(Precision precision) { return precision >= Precision::nested8; }
// Bits of a code in the lower plane, and columns of a line of that plane.
constexpr int low_bits(Precision precision) { return precision == Precision::nested8 ? 4 : 2; }
constexpr size_t low_columns(Precision precision) { return precision == Precision::nested8 ? 8 : 16; }

inline constexpr size_t kPanelRows = 16;
inline constexpr size_t kLineBytes = 64;
inline constexpr size_t kSubColumns = 16;  // columns that share an int4 factor
inline constexpr size_t kMaxExact = 64;    // exact columns of one matrix
inline constexpr size_t kMaxGroup = 256;

struct Matrix {
  Precision precision = Precision::fp32;
  size_t rows = 0;         // of W, padding rows included: a multiple of 16
  size_t cols = 0;         // of W, padding columns included: a multiple of 16; of 32 in bfloat16
  size_t group = 0;        // quantised: columns of activations that share a scale; a multiple of 16
  size_t scale_group = 0;  // columns of weights that share one; a multiple of `group`
  size_t exact_count = 0;  // even
  const int32_t* exact = nullptr;
  size_t scales_at = 0, subs_at = 0, weights_at = 0;  // bytes from the beginning of a panel
  size_t panel_bytes = 0;
  size_t low_bytes = 0;  // nested: of a panel in the lower plane
  const uint8_t* data = nullptr;
  const uint8_t* low = nullptr;  // nested: the lower plane

  size_t panels() const { return rows / kPanelRows; }
  size_t bytes() const { return panels() * (panel_bytes + low_bytes); }
  size_t groups() const { return group == 0 ? 0 : (cols + group - 1) / group; }
  size_t scale_groups() const { return scale_group == 0 ? 0 : (cols + scale_group - 1) / scale_group; }
  // Where the scales of a group of activations lie in a panel.
  size_t scales_of(size_t g) const { return scales_at + g * group / scale_group * kPanelRows * sizeof(uint16_t); }
  void set_data(const uint8_t* to) {
    data = to;
    low = low_bytes == 0 ? nullptr : to + panels() * panel_bytes;
  }
  size_t group_cols(size_t g) const { return cols - g * group < group ? cols - g * group : group; }
};

// Activation rows in the form that a matrix of the same precision multiplies: float32, bfloat16, or int8 with a scale
// for each row and group and sums of the bytes that take the offset of the weights away.
struct Rows {
  uint8_t* data = nullptr;     // 64 bytes more are readable behind the last row
  size_t stride = 0;           // bytes from row to row
  float* scales = nullptr;     // [rows][groups]
  int32_t* offsets = nullptr;  // [rows][groups]: -128 * sum
  int32_t* fine = nullptr;     // [rows][fine_stride]: -8 * sum of each 16 columns
  float* exact = nullptr;      // [rows][kMaxExact]
  size_t groups = 0;
  size_t fine_stride = 0;
};

// A panel that a thread is likely to want afterwards: of the matrix that it multiplies by, or of another one, which must
// outlive the call. Its number is panels() or more if there is none.
struct Next {
  const Matrix* other = nullptr;
  size_t panel = 0;
  Next(size_t panel_of_same) : panel(panel_of_same) {}
  Next(const Matrix& other, size_t panel) : other(&other), panel(panel) {}
};

// Multiplies rows [row, row + count) by panels [panel, panel + panels); out[0] belongs to that first row and panel,
// `stride` floats lie from one row of `out` to the next. `scratch` has linear_scratch_bytes(w) bytes. Memory is asked for
// the panels at `next`.
using LinearFn = void (*)(const Matrix& w, const Rows& x, size_t row, size_t count, size_t panel, size_t panels,
                          Next next, float* out, size_t stride, uint8_t* scratch);

// Room for four panels as int8, their groups filled up to whole tiles, and one more as it is expanded.
inline size_t linear_scratch_bytes(size_t cols) { return 4 * kPanelRows * (2 * cols + 2 * kMaxGroup) + kPanelRows * cols; }

// Converts columns [col, col + n) of one row, float32 at `x`, into row `row` of `out`, as matrix `w` takes them. `col` is
// a multiple of the group, `x` is readable (and zero) up to the next multiple of 16.
using PrepareFn = void (*)(const Matrix& w, const float* x, size_t col, size_t n, const Rows& out, size_t row);

// Of one row and each of `panels` panels of a nested matrix: the largest lower and the largest upper bound of its products,
// matrix rows from `limit` on left out (-inf). `spread` has, for each group of activations, what `nested_spread` gives.
using BoundFn = void (*)(const Matrix& w, const Rows& x, const float* spread, size_t row, size_t panel, size_t panels,
                         size_t limit, float* lower, float* upper);

inline constexpr float kBoundSigmas = 7.0f;

// Square of kBoundSigmas standard deviations of sum over a group of (lower bits - their mean) * activation.
inline void nested_spread(const Matrix& w, const Rows& x, size_t row, float* spread) {
  const float steps = static_cast<float>(1 << low_bits(w.precision));
  const float variance = (steps * steps - 1.0f) / 12.0f;  // of a whole number drawn evenly from 0 to steps - 1
  const int8_t* bytes = reinterpret_cast<const int8_t*>(x.data + row * x.stride);
  for (size_t g = 0; g < w.groups(); ++g) {
    int32_t squares = 0;
    for (size_t k = g * w.group; k < g * w.group + w.group_cols(g); ++k) squares += bytes[k] * bytes[k];
    const float scale = kBoundSigmas * x.scales[row * x.groups + g];
    spread[g] = scale * scale * variance * static_cast<float>(squares);
  }
}

}  // namespace ernie
