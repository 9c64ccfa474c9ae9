// What calibration computes over whole matrices, row-major float32. Results do not depend on the threads.
#pragma once

#include "base/memory.h"
#include "base/thread_pool.h"
#include "kernels/kernels.h"
#include "kernels/linear/pack.h"

namespace ernie {

// Working memory that is kept from call to call: having the system make it anew each time took a sixth of calibration.
class Workspace {
 public:
  float* left(size_t floats) { return grown(&left_, floats); }
  float* right(size_t floats) { return grown(&right_, floats); }

 private:
  static float* grown(AlignedBuffer* buffer, size_t floats) {
    const size_t bytes = floats * sizeof(float) + kAlign;  // kernels may read a line behind the end
    if (buffer->size() < bytes) *buffer = AlignedBuffer(bytes);
    return reinterpret_cast<float*>(buffer->data());
  }
  AlignedBuffer left_, right_;
};

// Row-major results for a matrix of [rows][cols]; see RoundedPanel. `exact` is [rows][number of exact columns].
struct RoundedMatrix {
  int8_t* codes = nullptr;
  uint16_t* scales = nullptr;
  uint8_t* subs = nullptr;  // null unless how.factors
  uint16_t* exact = nullptr;
};

void round_matrix(const RoundingKernels& kernels, const Rounding& how, const float* weights, size_t rows,
                  const RoundedMatrix& out, ThreadPool& pool);

// Solves y H = b for every row of `values`, [rows][n], in place.
void solve_matrix(const RoundingKernels& kernels, const float* reach, size_t n, float* values, size_t rows,
                  Workspace& memory, ThreadPool& pool);

// reach[n][n] = R transposed, zero above the diagonal, for the symmetric `gram`, [n][n], of which only what is on or below
// the diagonal is read; false if that is not positive.
bool factor_matrix(const RoundingKernels& kernels, const float* gram, size_t n, float* reach, Workspace& memory,
                   ThreadPool& pool);

// out[m][n] = sum over k of x[m][k] * w[n][k]; x is [rows][cols], w [out_rows][cols].
void multiply_matrix(const Kernels& kernels, const float* x, size_t rows, const float* w, size_t out_rows, size_t cols,
                     float* out, Workspace& memory, ThreadPool& pool);

// What a model computes with a quantised matrix: out[m][n] for x, [rows][cols], of which `group` columns share a scale.
void multiply_codes(const Kernels& kernels, const float* x, size_t rows, const Source& w, size_t group, float* out,
                    Workspace& memory, ThreadPool& pool);

// out[m][n] = sum over t of x[t][m] * y[t][n]; x is [rows][x_cols], y [rows][y_cols]. With `lower`, which wants x and y to
// be the same, only what is on or below the diagonal counts, and not all of the rest is written.
void cross_matrix(const Kernels& kernels, const float* x, size_t x_cols, const float* y, size_t y_cols, size_t rows,
                  bool lower, float* out, Workspace& memory, ThreadPool& pool);

}  // namespace ernie
