// Matrix times rows: out[m][n] = sum over k of W[n][k] * x[m][k].
//
// Packed layout, the same for every instruction set. Rows of W are cut into panels of 16; a panel is a run of 64-byte
// lines. A line of weights has 4 bytes of every row: one float32, two bfloat16 or four int8 along K, or eight int4 (its
// low nibbles are the first four columns, its high nibbles the next four). Panels lie in order, so one matrix is one
// stream.
//
// Quantised panels begin with what belongs to all of their lines:
//   exact    exact_count / 2 lines of bfloat16: columns that are kept as they are, in ascending order; their codes are zero
//   scales   one bfloat16 a row for each group of columns, [groups][16], rounded up to a whole line
//   subs     int4 only: a line for every 128 columns; nibble j of row r's four bytes is the factor of columns 16j..16j+15
//   weights  int8: the code + 128, unsigned. int4: the code + 8
// so that W[n][k] = scale * code (int8) or scale * sub * code (int4). An int4 panel expands exactly to an int8 panel
// whose codes are sub * code, from -120 to 105, and both give the same bits.
//
// Activations of a quantised matrix: exact columns in float32; the rest int8 with a scale for each row and group.
//
// Order of summation: exact columns, then along K group by group, whatever the number of rows, panels or threads. That
// is what makes results independent of the batch. Sums inside a group are of integers, and exact.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ernie {

enum class Precision { fp32, bf16, int8, int4 };

inline bool is_quantised(Precision precision) { return precision == Precision::int8 || precision == Precision::int4; }

inline constexpr size_t kPanelRows = 16;
inline constexpr size_t kLineBytes = 64;
inline constexpr size_t kSubColumns = 16;  // columns that share an int4 factor
inline constexpr size_t kMaxExact = 64;    // exact columns of one matrix
inline constexpr size_t kMaxGroup = 256;

struct Matrix {
  Precision precision = Precision::fp32;
  size_t rows = 0;         // of W, padding rows included: a multiple of 16
  size_t cols = 0;         // of W, padding columns included: a multiple of 16; of 32 in bfloat16
  size_t group = 0;        // quantised: columns that share a scale; a multiple of 16
  size_t exact_count = 0;  // even
  const int32_t* exact = nullptr;
  size_t scales_at = 0, subs_at = 0, weights_at = 0;  // bytes from the beginning of a panel
  size_t panel_bytes = 0;
  const uint8_t* data = nullptr;

  size_t panels() const { return rows / kPanelRows; }
  size_t groups() const { return group == 0 ? 0 : (cols + group - 1) / group; }
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

// Multiplies rows [row, row + count) by panels [panel, panel + panels); out[0] belongs to that first row and panel,
// `stride` floats lie from one row of `out` to the next. `scratch` has linear_scratch_bytes(w) bytes.
using LinearFn = void (*)(const Matrix& w, const Rows& x, size_t row, size_t count, size_t panel, size_t panels,
                          float* out, size_t stride, uint8_t* scratch);

// Room for four panels as int8, their groups filled up to whole tiles.
inline size_t linear_scratch_bytes(size_t cols) { return 4 * kPanelRows * (2 * cols + 2 * kMaxGroup); }

// Converts columns [col, col + n) of one row, float32 at `x`, into row `row` of `out`, as matrix `w` takes them. `col` is
// a multiple of the group, `x` is readable (and zero) up to the next multiple of 16.
using PrepareFn = void (*)(const Matrix& w, const float* x, size_t col, size_t n, const Rows& out, size_t row);

}  // namespace ernie
