// bench_row [rows cols [threads [rounds]]]: how fast one row is multiplied by a matrix that no cache holds, as a share of the
// read bandwidth of the same minute: rounds alternate between reading and every precision of the best variant.
#include <algorithm>
#include <chrono>
#include <functional>

#include "base/bandwidth.h"
#include "kernels/linear/pack.h"
#include "tests/testing.h"

using namespace ernie;

namespace {

constexpr size_t kPanelsPerTask = 8;             // as a step takes them
constexpr size_t kBytes = size_t{400} << 20;  // of a matrix: many times the last cache

double seconds_of(const std::function<void()>& body) {
  const auto begin = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// The rows over and over, so that a matrix of `bits` a weight takes about kBytes.
std::vector<SourceRow> repeated(size_t rows, size_t cols, size_t bits) {
  const size_t times = std::max<size_t>(1, kBytes * 8 / (rows * cols * bits));
  std::vector<SourceRow> map;
  for (size_t i = 0; i < times; ++i)
    for (size_t row = 0; row < rows; ++row) map.push_back({0, row});
  return map;
}

// A matrix and the row that it multiplies.
struct Case {
  const char* name;
  PackedMatrix packed;
  AlignedBuffer data, scales, offsets, fine, exact;
  std::vector<double> shares, rates;

  Case(const char* name, Precision precision, size_t bits, const Source& source, size_t group, const Kernels& kernels, ThreadPool& pool)
      : name(name), packed(pack(precision, {group, 2 * group}, {source}, repeated(source.rows, source.cols, bits),
                    plain_cols(source.cols), kernels, pool)) {
    const Matrix& w = packed.view;
    data = AlignedBuffer(prepared_bytes(w) + kLineBytes);
    scales = AlignedBuffer(w.groups() * 4 + kLineBytes);
    offsets = AlignedBuffer(w.groups() * 4 + kLineBytes);
    fine = AlignedBuffer(w.cols / 4);
    exact = AlignedBuffer(kMaxExact * 4);
    std::vector<float> x(w.cols + 16, 0.5f);
    kernels.prepare(w, x.data(), 0, w.cols, row(), 0);
  }
  Rows row() const {
    const Matrix& w = packed.view;
    return {data.data(), prepared_bytes(w), reinterpret_cast<float*>(scales.data()), reinterpret_cast<int32_t*>(offsets.data()),
            reinterpret_cast<int32_t*>(fine.data()), reinterpret_cast<float*>(exact.data()), w.groups(), w.cols / kSubColumns};
  }
};

void multiply(const Case& c, const Kernels& kernels, ThreadPool& pool, std::vector<AlignedBuffer>& scratch) {
  const Matrix& w = c.packed.view;
  const size_t tasks = div_up(w.panels(), kPanelsPerTask);
  pool.run_neighbours(tasks, [&](size_t task, int thread) {
    float tile[kPanelsPerTask * kPanelRows];
    const size_t panel = task * kPanelsPerTask;
    const size_t next = (task + 1) * kPanelsPerTask;
    kernels.linear(w, c.row(), 0, 1, panel, std::min(kPanelsPerTask, w.panels() - panel), next, tile, kPanelsPerTask * kPanelRows,
                   scratch[static_cast<size_t>(thread)].data());
  });
}

}  // namespace

int main(int argc, char** argv) {
  const auto argument = [&](int i, size_t otherwise) { return argc > i ? std::strtoul(argv[i], nullptr, 10) : otherwise; };
  const size_t rows = argument(1, 6144), cols = argument(2, 1024), rounds = argument(4, 15);
  const int threads = static_cast<int>(argument(3, 2));
  const Kernels& kernels = kernels_for(supported_isas().back());
  ThreadPool pool(threads);
  std::vector<AlignedBuffer> scratch;
  for (int t = 0; t < threads; ++t) scratch.emplace_back(linear_scratch_bytes(cols));
  std::mt19937 random(1);
  const auto weights = normals(random, rows * cols);
  const Source source{weights.data(), Dtype::fp32, rows, cols, static_cast<ptrdiff_t>(cols), 1};
  std::vector<Case> cases;
  cases.emplace_back("fp32", Precision::fp32, 32, source, 0, kernels, pool);
  cases.emplace_back("bf16", Precision::bf16, 16, source, 0, kernels, pool);
  cases.emplace_back("int8", Precision::int8, 8, source, 64, kernels, pool);
  cases.emplace_back("int4", Precision::int4, 4, source, 64, kernels, pool);
  for (size_t round = 0; round < rounds; ++round)
    for (Case& c : cases) {
      const double read = read_bandwidth(kBytes, threads, 3);
      double best = 1e9;
      for (int pass = 0; pass < 3; ++pass) best = std::min(best, seconds_of([&] { multiply(c, kernels, pool, scratch); }));
      c.rates.push_back(static_cast<double>(c.packed.bytes()) / best / 1e9);
      c.shares.push_back(c.rates.back() * 1e9 / read);
    }
  std::printf("one row, %zu x %zu, %d threads, %s\n", rows, cols, threads, isa_name(kernels.isa));
  for (const Case& c : cases) std::printf("%-6s %5.1f GB/s, %4.0f%% of reading\n", c.name, median(c.rates), 100 * median(c.shares));
}
