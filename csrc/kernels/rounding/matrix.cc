#include "kernels/rounding/matrix.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/float_mode.h"
#include "base/memory.h"
#include "kernels/linear/pack.h"

namespace ernie {
namespace {

constexpr size_t kRowsAtOnce = 64;
constexpr size_t kPanelsAtOnce = 16;
constexpr size_t kDepthAtOnce = 1024;  // rows of x and y that a product goes over: they stay in the cache

// Lanes beyond the last row are zero.
void load_panel(const float* values, size_t rows, size_t cols, size_t first, float* panel) {
  for (size_t r = 0; r < kPanelRows; ++r)
    for (size_t c = 0; c < cols; ++c) panel[kPanelRows * c + r] = first + r < rows ? values[(first + r) * cols + c] : 0.0f;
}

struct PanelBuffers {
  std::vector<float> weights, scratch;
  std::vector<int8_t> codes;
  std::vector<uint16_t> scales, exact;
  std::vector<uint8_t> subs;

  explicit PanelBuffers(const Rounding& how)
      : weights(kPanelRows * how.cols),
        scratch(rounding_scratch_floats(how.cols)),
        codes(kPanelRows * how.cols),
        scales(kPanelRows * div_up(how.cols, how.group)),
        exact(kPanelRows * how.cols),
        subs(kPanelRows * div_up(how.cols, kSubColumns)) {}

  RoundedPanel view() { return {codes.data(), scales.data(), subs.data(), exact.data()}; }
};

// `from` is [width][16], `to` one row of a row-major matrix.
template <typename T>
void take_lane(const std::vector<T>& from, size_t lane, size_t width, T* to) {
  for (size_t i = 0; i < width; ++i) to[i] = from[kPanelRows * i + lane];
}

void store_row(const Rounding& how, const PanelBuffers& from, size_t lane, size_t row, const RoundedMatrix& out) {
  const size_t groups = div_up(how.cols, how.group), subs = div_up(how.cols, kSubColumns);
  take_lane(from.codes, lane, how.cols, out.codes + row * how.cols);
  take_lane(from.scales, lane, groups, out.scales + row * groups);
  if (how.factors) take_lane(from.subs, lane, subs, out.subs + row * subs);
  const size_t kept = static_cast<size_t>(std::count(how.exact, how.exact + how.cols, uint8_t{1}));
  uint16_t* to = out.exact + row * kept;
  for (size_t c = 0; c < how.cols; ++c)
    if (how.exact[c]) *to++ = from.exact[kPanelRows * c + lane];
}

}  // namespace

void round_matrix(const RoundingKernels& kernels, const Rounding& how, const float* weights, size_t rows,
                  const RoundedMatrix& out, ThreadPool& pool) {
  const DefaultFloatMode mode;
  pool.run(div_up(rows, kPanelRows), [&](size_t panel, int) {
    const DefaultFloatMode inside;
    PanelBuffers buffers(how);
    load_panel(weights, rows, how.cols, panel * kPanelRows, buffers.weights.data());
    kernels.round_panel(how, buffers.weights.data(), buffers.view(), buffers.scratch.data());
    for (size_t r = 0; r < kPanelRows && panel * kPanelRows + r < rows; ++r)
      store_row(how, buffers, r, panel * kPanelRows + r, out);
  });
}

void solve_matrix(const RoundingKernels& kernels, const float* reach, size_t n, float* values, size_t rows,
                  ThreadPool& pool) {
  const DefaultFloatMode mode;
  pool.run(div_up(rows, kSolveLanes), [&](size_t part, int) {
    const size_t first = part * kSolveLanes, count = std::min(kSolveLanes, rows - first);
    std::vector<float> lanes(kSolveLanes * n, 0.0f);
    for (size_t r = 0; r < count; ++r)
      for (size_t c = 0; c < n; ++c) lanes[kSolveLanes * c + r] = values[(first + r) * n + c];
    kernels.solve_panels(reach, n, lanes.data());
    for (size_t r = 0; r < count; ++r)
      for (size_t c = 0; c < n; ++c) values[(first + r) * n + c] = lanes[kSolveLanes * c + r];
  });
}

bool factor_matrix(const RoundingKernels& kernels, const float* gram, size_t n, float* reach, ThreadPool& pool) {
  const DefaultFloatMode mode;
  const size_t padded = round_up(n, kPanelRows), panels = padded / kPanelRows;
  // Padding rows are those of the unit matrix, which factor into themselves.
  std::vector<float> columns(padded * padded, 0.0f);
  const auto at = [&](size_t panel, size_t row) { return columns.data() + (panel * padded + row) * kPanelRows; };
  pool.run(panels, [&](size_t p, int) {
    for (size_t row = p * kPanelRows; row < padded; ++row)
      for (size_t lane = 0; lane < kPanelRows; ++lane) {
        const size_t col = p * kPanelRows + lane;
        at(p, row)[lane] = row < n && col < n ? gram[row * n + col] : row == col ? 1.0f : 0.0f;
      }
  });
  constexpr size_t kBlockBytes = kPanelRows * kPanelRows * sizeof(float);
  for (size_t p = panels; p-- > 0;) {
    const size_t row = p * kPanelRows;
    float diagonal[kPanelRows * kPanelRows];
    kernels.factor_update(at(p, 0), at(p, 0), row, padded, diagonal);
    if (!kernels.factor_diagonal(diagonal)) return false;
    std::memcpy(at(p, row), diagonal, kBlockBytes);
    pool.run(p, [&](size_t other, int) {
      float block[kPanelRows * kPanelRows];
      kernels.factor_update(at(p, 0), at(other, 0), row, padded, block);
      kernels.factor_rows(diagonal, block);
      std::memcpy(at(other, row), block, kBlockBytes);
    });
  }
  pool.run(n, [&](size_t row, int) {
    for (size_t col = 0; col < n; ++col)
      reach[row * n + col] = col <= row ? at(col / kPanelRows, row)[col % kPanelRows] : 0.0f;
  });
  return true;
}

namespace {

// Adds products of rows by panels to `out`, [rows][out_rows]; with `lower` some of those above the diagonal are left out.
void add_products(const Kernels& kernels, const Matrix& w, const Rows& x, size_t rows, size_t out_rows, bool lower,
                  float* out, ThreadPool& pool) {
  const size_t blocks = div_up(rows, kRowsAtOnce), parts = div_up(w.panels(), kPanelsAtOnce);
  pool.run(blocks * parts, [&](size_t task, int) {
    const size_t row = task % blocks * kRowsAtOnce, count = std::min(kRowsAtOnce, rows - row);
    const size_t panel = task / blocks * kPanelsAtOnce;
    const size_t panels = std::min(kPanelsAtOnce, w.panels() - panel), first = panel * kPanelRows;
    if (lower && first >= row + count) return;
    std::vector<float> product(count * panels * kPanelRows);
    std::vector<uint8_t> scratch(linear_scratch_bytes(w.cols));
    kernels.linear(w, x, row, count, panel, panels, panel + panels, product.data(), panels * kPanelRows, scratch.data());
    const size_t width = std::min(panels * kPanelRows, out_rows - first);
    for (size_t r = 0; r < count; ++r) {
      float* to = out + (row + r) * out_rows + first;
      for (size_t c = 0; c < width; ++c) to[c] += product[r * panels * kPanelRows + c];
    }
  });
}

void clear_rows(float* out, size_t rows, size_t cols, ThreadPool& pool) {
  pool.run(rows, [&](size_t row, int) { std::memset(out + row * cols, 0, cols * sizeof(float)); });
}

}  // namespace

void multiply_matrix(const Kernels& kernels, const float* x, size_t rows, const float* w, size_t out_rows, size_t cols,
                     float* out, ThreadPool& pool) {
  const DefaultFloatMode mode;
  const Source source{.data = w,
                      .dtype = Dtype::fp32,
                      .rows = out_rows,
                      .cols = cols,
                      .row_stride = static_cast<ptrdiff_t>(cols),
                      .col_stride = 1};
  const PackedMatrix packed = pack(Precision::fp32, {}, {source}, plain_rows(out_rows), plain_cols(cols), kernels, pool);
  const size_t padded = packed.view.cols;
  AlignedBuffer left(rows * padded * sizeof(float) + kLineBytes);
  float* copy = reinterpret_cast<float*>(left.data());
  pool.run(rows, [&](size_t row, int) {
    std::memcpy(copy + row * padded, x + row * cols, cols * sizeof(float));
    std::memset(copy + row * padded + cols, 0, (padded - cols) * sizeof(float));
  });
  clear_rows(out, rows, out_rows, pool);
  const Rows prepared{.data = left.data(), .stride = padded * sizeof(float)};
  add_products(kernels, packed.view, prepared, rows, out_rows, false, out, pool);
}

void cross_matrix(const Kernels& kernels, const float* x, size_t x_cols, const float* y, size_t y_cols, size_t rows,
                  bool lower, float* out, ThreadPool& pool) {
  const DefaultFloatMode mode;
  const size_t depth = std::min(kDepthAtOnce, round_up(rows, kPanelRows));
  const size_t left_panels = div_up(x_cols, kPanelRows), right_panels = div_up(y_cols, kPanelRows);
  AlignedBuffer left(left_panels * kPanelRows * depth * sizeof(float) + kLineBytes);
  AlignedBuffer right(right_panels * kPanelRows * depth * sizeof(float));
  clear_rows(out, x_cols, y_cols, pool);
  for (size_t at = 0; at < rows; at += kDepthAtOnce) {
    const size_t some = std::min(kDepthAtOnce, rows - at), padded = round_up(some, kPanelRows);
    pool.run(right_panels, [&](size_t p, int) {  // a line of a panel is a piece of a row
      float* to = reinterpret_cast<float*>(right.data()) + p * kPanelRows * padded;
      for (size_t t = 0; t < padded; ++t)
        for (size_t lane = 0; lane < kPanelRows; ++lane) {
          const size_t col = p * kPanelRows + lane;
          to[t * kPanelRows + lane] = t < some && col < y_cols ? y[(at + t) * y_cols + col] : 0.0f;
        }
    });
    pool.run(left_panels, [&](size_t p, int) {
      float* to = reinterpret_cast<float*>(left.data()) + p * kPanelRows * padded;
      const size_t width = std::min(kPanelRows, x_cols - p * kPanelRows);
      for (size_t t = 0; t < padded; ++t)
        for (size_t lane = 0; lane < width; ++lane)
          to[lane * padded + t] = t < some ? x[(at + t) * x_cols + p * kPanelRows + lane] : 0.0f;
    });
    Matrix w = describe(Precision::fp32, {}, right_panels * kPanelRows, padded, 0);
    w.set_data(right.data());
    const Rows prepared{.data = left.data(), .stride = padded * sizeof(float)};
    add_products(kernels, w, prepared, x_cols, y_cols, lower, out, pool);
  }
}

}  // namespace ernie
