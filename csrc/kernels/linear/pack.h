// Builds packed matrices (layout: linear.h) from tensors as a checkpoint stores them, or from codes that were chosen
// before.
#pragma once

#include <cstdint>
#include <vector>

#include "base/memory.h"
#include "base/thread_pool.h"
#include "kernels/linear/linear.h"

namespace ernie {

struct Kernels;

enum class Dtype { fp32, fp16, bf16 };

// A matrix whose codes somebody else chose (calibrated quantization); all arrays row-major and contiguous.
struct Codes {
  const int8_t* codes = nullptr;          // [rows][cols]; -127..127, -32..31 or -8..7; zero in exact columns
  const uint16_t* scales = nullptr;       // bfloat16 [rows][groups]
  const uint8_t* subs = nullptr;          // 4 bits: 0..15 [rows][ceil(cols / 16)]
  const int32_t* exact = nullptr;         // [exact_count], ascending
  const uint16_t* exact_weights = nullptr;  // bfloat16 [rows][exact_count]
  size_t exact_count = 0;
  int bits = 8;
  size_t group = 0;  // columns that share a scale
};

// A stored matrix; strides in elements, so that transposed and sliced tensors need no copy. With `codes`, only rows and
// cols count beside them.
struct Source {
  const void* data = nullptr;
  Dtype dtype = Dtype::fp32;
  size_t rows = 0, cols = 0;
  ptrdiff_t row_stride = 0, col_stride = 0;
  const Codes* codes = nullptr;

  float at(size_t row, size_t col) const;
};

// Where a packed row comes from; source < 0 is a row of zeros.
struct SourceRow {
  int source = -1;
  size_t row = 0;
};

// Columns that share a scale, of activations and of weights.
struct Groups {
  size_t activations = 0, scales = 0;
};

struct PackedMatrix {
  Matrix view;
  std::vector<int32_t> exact;  // what view.exact points to
  AlignedBuffer storage;       // empty where the panels belong to somebody else
  size_t bytes() const { return view.bytes(); }
};

// `row_map` names the source of every packed row (a multiple of 16 of them), `col_map` the source column of every packed
// column, -1 for zeros (a multiple of 16). The groups count for quantised precisions only; sources with codes have their
// own bits and scale group, and `precision` says no more than whether 8 bits are nested. The result does not depend on the
// threads, nor on the kernels. Throws std::invalid_argument for codes that do not fit together, and groups that do not.
PackedMatrix pack(Precision precision, Groups groups, const std::vector<Source>& sources,
                  const std::vector<SourceRow>& row_map, const std::vector<int32_t>& col_map, const Kernels& kernels,
                  ThreadPool& pool);

// What is wrong with the exact columns of a matrix; null if nothing is.
const char* exact_columns_problem(const int32_t* exact, size_t count, size_t cols);

// A matrix of that shape without its panels: what the layout says about it. `rows` and `cols` as the maps have them.
Matrix describe(Precision precision, Groups groups, size_t rows, size_t cols, size_t exact_count);

// The maps of a matrix that is packed as it lies, padded to multiples of 16.
std::vector<SourceRow> plain_rows(size_t rows);
std::vector<int32_t> plain_cols(size_t cols);

// Writes the first n columns of the matrix's row, as float32, to `out`.
void unpack_row(const Matrix& w, size_t row, size_t n, float* out);

// Columns of the activations of a matrix, and bytes of a row of them.
size_t prepared_cols(const Matrix& w);
size_t prepared_bytes(const Matrix& w);

}  // namespace ernie
