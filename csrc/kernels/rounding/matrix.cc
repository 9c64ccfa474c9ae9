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
  std::vector<PanelBuffers> of_threads(static_cast<size_t>(pool.threads()), PanelBuffers(how));
  pool.run(div_up(rows, kPanelRows), [&](size_t panel, int thread) {
    const DefaultFloatMode inside;
    PanelBuffers& buffers = of_threads[static_cast<size_t>(thread)];
    load_panel(weights, rows, how.cols, panel * kPanelRows, buffers.weights.data());
    kernels.round_panel(how, buffers.weights.data(), buffers.view(), buffers.scratch.data());
    for (size_t r = 0; r < kPanelRows && panel * kPanelRows + r < rows; ++r)
      store_row(how, buffers, r, panel * kPanelRows + r, out);
  });
}

void solve_matrix(const RoundingKernels& kernels, const float* reach, size_t n, float* values, size_t rows,
                  Workspace& memory, ThreadPool& pool) {
  const DefaultFloatMode mode;
  float* of_threads = memory.left(static_cast<size_t>(pool.threads()) * kSolveLanes * n);
  pool.run(div_up(rows, kSolveLanes), [&](size_t part, int thread) {
    const size_t first = part * kSolveLanes, count = std::min(kSolveLanes, rows - first);
    float* lanes = of_threads + static_cast<size_t>(thread) * kSolveLanes * n;
    for (size_t c = 0; c < n; ++c)
      for (size_t r = 0; r < kSolveLanes; ++r) lanes[kSolveLanes * c + r] = r < count ? values[(first + r) * n + c] : 0.0f;
    kernels.solve_panels(reach, n, lanes);
    for (size_t r = 0; r < count; ++r)
      for (size_t c = 0; c < n; ++c) values[(first + r) * n + c] = lanes[kSolveLanes * c + r];
  });
}

bool factor_matrix(const RoundingKernels& kernels, const float* gram, size_t n, float* reach, Workspace& memory,
                   ThreadPool& pool) {
  const DefaultFloatMode mode;
  const size_t padded = round_up(n, kPanelRows), panels = padded / kPanelRows;
  // Padding rows are those of the unit matrix, which factor into themselves.
  float* columns = memory.left(padded * padded);
  const auto at = [&](size_t panel, size_t row) { return columns + (panel * padded + row) * kPanelRows; };
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

// Products of rows by panels to `out`, [rows][out_rows], which they are added to or which they replace; with `lower` some of
// those above the diagonal are left out.
void multiply_panels(const Kernels& kernels, const Matrix& w, const Rows& x, size_t rows, size_t out_rows, bool lower,
                     bool add, float* out, ThreadPool& pool) {
  const size_t blocks = div_up(rows, kRowsAtOnce), parts = div_up(w.panels(), kPanelsAtOnce);
  pool.run(blocks * parts, [&](size_t task, int) {
    const size_t row = task % blocks * kRowsAtOnce, count = std::min(kRowsAtOnce, rows - row);
    const size_t panel = task / blocks * kPanelsAtOnce;
    const size_t panels = std::min(kPanelsAtOnce, w.panels() - panel), first = panel * kPanelRows;
    if (lower && first >= row + count) return;
    float product[kRowsAtOnce * kPanelsAtOnce * kPanelRows];
    std::vector<uint8_t> scratch(is_quantised(w.precision) ? linear_scratch_bytes(w.cols) : 0);
    const size_t stride = panels * kPanelRows;
    kernels.linear(w, x, row, count, panel, panels, panel + panels, product, stride, scratch.data());
    const size_t width = std::min(stride, out_rows - first);
    for (size_t r = 0; r < count; ++r) {
      float* to = out + (row + r) * out_rows + first;
      for (size_t c = 0; c < width; ++c) to[c] = product[r * stride + c] + (add ? to[c] : 0.0f);
    }
  });
}

// Columns [first, first + 16) of `from`, [rows][cols], as lines of a panel: zeros behind the last row and column.
void load_columns(const float* from, size_t rows, size_t cols, size_t first, size_t padded, float* panel) {
  for (size_t t = 0; t < padded; ++t)
    for (size_t lane = 0; lane < kPanelRows; ++lane)
      panel[kPanelRows * t + lane] = t < rows && first + lane < cols ? from[t * cols + first + lane] : 0.0f;
}

// ... as rows of `padded` values.
void turn_columns(const float* from, size_t rows, size_t cols, size_t first, size_t padded, float* to) {
  const size_t width = std::min(kPanelRows, cols - first);
  for (size_t t = 0; t < padded; ++t)
    for (size_t lane = 0; lane < width; ++lane) to[lane * padded + t] = t < rows ? from[t * cols + first + lane] : 0.0f;
}

}  // namespace

void multiply_matrix(const Kernels& kernels, const float* x, size_t rows, const float* w, size_t out_rows, size_t cols,
                     float* out, Workspace& memory, ThreadPool& pool) {
  const DefaultFloatMode mode;
  const size_t padded = round_up(cols, kPanelRows), panels = div_up(out_rows, kPanelRows);
  float *left = memory.left(rows * padded), *right = memory.right(panels * kPanelRows * padded);
  pool.run(rows, [&](size_t row, int) {
    std::memcpy(left + row * padded, x + row * cols, cols * sizeof(float));
    std::memset(left + row * padded + cols, 0, (padded - cols) * sizeof(float));
  });
  pool.run(panels, [&](size_t p, int) {
    float* panel = right + p * kPanelRows * padded;
    load_panel(w, out_rows, cols, p * kPanelRows, panel);
    std::memset(panel + kPanelRows * cols, 0, kPanelRows * (padded - cols) * sizeof(float));
  });
  Matrix packed = describe(Precision::fp32, {}, panels * kPanelRows, padded, 0);
  packed.set_data(reinterpret_cast<const uint8_t*>(right));
  const Rows prepared{.data = reinterpret_cast<uint8_t*>(left), .stride = padded * sizeof(float)};
  multiply_panels(kernels, packed, prepared, rows, out_rows, false, false, out, pool);
}

void multiply_codes(const Kernels& kernels, const float* x, size_t rows, const Source& w, size_t group, float* out,
                    Workspace& memory, ThreadPool& pool) {
  const DefaultFloatMode mode;
  const size_t padded = round_up(w.cols, kPanelRows);
  const PackedMatrix packed = pack(Precision::fp32, {group, 0}, {w}, plain_rows(w.rows), plain_cols(w.cols), kernels, pool);
  const Matrix& m = packed.view;
  const size_t stride = prepared_bytes(m), groups = m.groups(), sixteenths = padded / kSubColumns;
  AlignedBuffer bytes(rows * stride + kLineBytes);
  std::vector<float> scales(rows * groups), exact(rows * kMaxExact);
  std::vector<int32_t> offsets(rows * groups), fine(rows * sixteenths);
  const Rows prepared{bytes.data(), stride, scales.data(), offsets.data(), fine.data(), exact.data(), groups, sixteenths};
  float* of_threads = memory.left(static_cast<size_t>(pool.threads()) * padded);
  pool.run(rows, [&](size_t row, int thread) {
    float* copy = of_threads + static_cast<size_t>(thread) * padded;
    std::memcpy(copy, x + row * w.cols, w.cols * sizeof(float));
    std::memset(copy + w.cols, 0, (padded - w.cols) * sizeof(float));
    kernels.prepare(m, copy, 0, padded, prepared, row);
  });
  multiply_panels(kernels, m, prepared, rows, w.rows, false, false, out, pool);
}

void cross_matrix(const Kernels& kernels, const float* x, size_t x_cols, const float* y, size_t y_cols, size_t rows,
                  bool lower, float* out, Workspace& memory, ThreadPool& pool) {
  const DefaultFloatMode mode;
  const size_t depth = std::min(kDepthAtOnce, round_up(rows, kPanelRows));
  const size_t x_panels = div_up(x_cols, kPanelRows), y_panels = div_up(y_cols, kPanelRows);
  float *left = memory.left(x_panels * kPanelRows * depth), *right = memory.right(y_panels * kPanelRows * depth);
  for (size_t at = 0; at < rows; at += kDepthAtOnce) {
    const size_t some = std::min(kDepthAtOnce, rows - at), padded = round_up(some, kPanelRows);
    pool.run(y_panels, [&](size_t p, int) {
      load_columns(y + at * y_cols, some, y_cols, p * kPanelRows, padded, right + p * kPanelRows * padded);
    });
    pool.run(x_panels, [&](size_t p, int) {
      turn_columns(x + at * x_cols, some, x_cols, p * kPanelRows, padded, left + p * kPanelRows * padded);
    });
    Matrix packed = describe(Precision::fp32, {}, y_panels * kPanelRows, padded, 0);
    packed.set_data(reinterpret_cast<const uint8_t*>(right));
    const Rows prepared{.data = reinterpret_cast<uint8_t*>(left), .stride = padded * sizeof(float)};
    multiply_panels(kernels, packed, prepared, x_cols, y_cols, lower, at > 0, out, pool);
  }
}

}  // namespace ernie
