#include "base/peak.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <numeric>
#include <stdexcept>

#include "base/thread_pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ernie {
namespace {

#if defined(__x86_64__)
constexpr size_t kSums = 16;  // more than instructions are under way at a time, fewer than registers
constexpr size_t kLoops = 20000;  // a task of a tenth of a millisecond or so; threads finish together to within one
constexpr double kOperations = 2.0 * 64 * kSums * kLoops;

bool has_dot_products() { return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vnni"); }

__attribute__((target("avx512f,avx512vnni"))) int32_t multiply(uint8_t value) {
  const __m512i a = _mm512_set1_epi8(static_cast<char>(value)), b = _mm512_set1_epi8(1);
  __m512i sums[kSums];
  for (__m512i& sum : sums) sum = _mm512_setzero_si512();
  for (size_t loop = 0; loop < kLoops; ++loop)
#pragma GCC unroll 16
    for (__m512i& sum : sums) sum = _mm512_dpbusd_epi32(sum, a, b);
  for (size_t i = 1; i < kSums; ++i) sums[0] = _mm512_add_epi32(sums[0], sums[i]);
  alignas(64) int32_t lanes[16];
  _mm512_store_si512(lanes, sums[0]);
  return std::accumulate(std::begin(lanes), std::end(lanes), 0);
}
#endif

}  // namespace

double dot_product_peak(int threads, int passes) {
  if (threads < 1 || passes < 1) throw std::invalid_argument("threads and passes must be at least 1");
#if defined(__x86_64__)
  if (!has_dot_products()) return 0.0;
  ThreadPool pool(threads);
  const size_t tasks = static_cast<size_t>(threads) * 200;
  std::atomic<int64_t> total{0};  // used, so that no compiler leaves the work out
  double best = 0.0;
  for (int pass = 0; pass < passes; ++pass) {
    const auto begin = std::chrono::steady_clock::now();
    pool.run(tasks, [&](size_t task, int) { total += multiply(static_cast<uint8_t>(task % 2)); });
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    best = std::max(best, kOperations * static_cast<double>(tasks) / seconds);
  }
  if (total != static_cast<int64_t>(passes) * static_cast<int64_t>(tasks / 2 * 64 * kSums * kLoops))
    throw std::logic_error("products were summed wrongly");
  return best;
#else
  return 0.0;
#endif
}

}  // namespace ernie
