// bench_linear [rows cols [group]]: giga-operations a second of every variant, precision and number of tokens, one thread.
#include <chrono>

#include "kernels/linear/pack.h"
#include "tests/testing.h"

using namespace ernie;

namespace {

constexpr size_t kTokens[] = {1, 4, 8, 16, 48, 512};

double seconds(const std::chrono::steady_clock::time_point& since) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - since).count();
}

void bench(const Kernels& kernels, const PackedMatrix& packed, const char* name) {
  const Matrix& w = packed.view;
  const size_t most = kTokens[std::size(kTokens) - 1];
  AlignedBuffer data(most * prepared_bytes(w) + 64), scales(most * w.groups() * 4 + 64), offsets(most * w.groups() * 4 + 64),
      fine(most * w.cols / 4), exact(most * kMaxExact * 4), scratch(linear_scratch_bytes(w.cols));
  const Rows rows{data.data(), prepared_bytes(w), reinterpret_cast<float*>(scales.data()),
                  reinterpret_cast<int32_t*>(offsets.data()), reinterpret_cast<int32_t*>(fine.data()),
                  reinterpret_cast<float*>(exact.data()), w.groups(), w.cols / kSubColumns};
  constexpr size_t kBlock = 512;
  AlignedBuffer tile(kBlock * 128 * 4);
  std::printf("%-12s %-7s", isa_name(kernels.isa), name);
  for (size_t tokens : kTokens) {
    double best = 1e9;
    const auto start = std::chrono::steady_clock::now();
    while (seconds(start) < 0.25) {
      const auto begin = std::chrono::steady_clock::now();
      for (size_t panel = 0; panel < w.panels(); panel += 8) {
        const size_t panels = std::min<size_t>(8, w.panels() - panel);
        for (size_t m = 0; m < tokens; m += kBlock)
          kernels.linear(w, rows, m, std::min(kBlock, tokens - m), panel, panels, panel + panels, reinterpret_cast<float*>(tile.data()),
                         panels * 16, scratch.data());
      }
      best = std::min(best, seconds(begin));
    }
    std::printf(" %8.1f", 2e-9 * static_cast<double>(w.rows * w.cols * tokens) / best);
  }
  std::printf("\n");
}

}  // namespace

int main(int argc, char** argv) {
  const size_t rows = argc > 2 ? std::strtoul(argv[1], nullptr, 10) : 6144;
  const size_t cols = argc > 2 ? std::strtoul(argv[2], nullptr, 10) : 1024;
  const size_t group = argc > 3 ? std::strtoul(argv[3], nullptr, 10) : 128;
  std::mt19937 random(1);
  const auto weights = normals(random, rows * cols);
  const Source source{weights.data(), Dtype::fp32, rows, cols, static_cast<ptrdiff_t>(cols), 1};
  ThreadPool pool(1);
  std::printf("%zu x %zu, GOPS by number of tokens:", rows, cols);
  for (size_t tokens : kTokens) std::printf(" %zu", tokens);
  std::printf("\n");
  const struct {
    Precision precision;
    const char* name;
  } precisions[] = {{Precision::fp32, "fp32"}, {Precision::bf16, "bf16"}, {Precision::int8, "int8"}, {Precision::int4, "int4"},
                    {Precision::nested8, "nested8"}, {Precision::nested6, "nested6"}};
  for (const auto& p : precisions) {
    const PackedMatrix packed = pack(p.precision, {group, group}, {source}, plain_rows(rows), plain_cols(cols), kernels_for(supported_isas().back()), pool);
    for (Isa isa : supported_isas()) bench(kernels_for(isa), packed, p.name);
  }
}
