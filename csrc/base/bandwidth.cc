#include "base/bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <numeric>
#include <stdexcept>

#include "base/memory.h"
#include "base/thread_pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ernie {
namespace {

constexpr size_t kBlock = size_t{256} << 10;  // a task; threads finish a pass together to within one, each reading in one stream

// The sum of all 64-bit words, in partial sums that do not wait for one another. Vectors as wide as the processor has them:
// with narrow ones a single core would be held up by the additions.
uint64_t sum(const uint8_t* data, size_t bytes) {
  uint64_t sums[16] = {}, words[16];
  for (size_t at = 0; at < bytes; at += sizeof(words)) {
    std::memcpy(words, data + at, sizeof(words));
    for (size_t i = 0; i < 16; ++i) sums[i] += words[i];
  }
  return std::accumulate(std::begin(sums), std::end(sums), uint64_t{0});
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) uint64_t sum_avx2(const uint8_t* data, size_t bytes) {
  __m256i sums[8] = {};
  for (size_t at = 0; at < bytes; at += sizeof(sums))
    for (size_t i = 0; i < 8; ++i)
      sums[i] = _mm256_add_epi64(sums[i], _mm256_load_si256(reinterpret_cast<const __m256i*>(data + at) + i));
  return sum(reinterpret_cast<const uint8_t*>(sums), sizeof(sums));
}

__attribute__((target("avx512f"))) uint64_t sum_avx512(const uint8_t* data, size_t bytes) {
  __m512i sums[8] = {};
  for (size_t at = 0; at < bytes; at += sizeof(sums))
    for (size_t i = 0; i < 8; ++i)
      sums[i] = _mm512_add_epi64(sums[i], _mm512_load_si512(reinterpret_cast<const __m512i*>(data + at) + i));
  return sum(reinterpret_cast<const uint8_t*>(sums), sizeof(sums));
}
#endif

using Sum = uint64_t (*)(const uint8_t*, size_t);

Sum widest() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return sum_avx512;
  if (__builtin_cpu_supports("avx2")) return sum_avx2;
#endif
  return sum;
}

}  // namespace

double read_bandwidth(size_t bytes, int threads, int passes) {
  if (bytes == 0 || threads < 1 || passes < 1) throw std::invalid_argument("bytes, threads and passes must be at least 1");
  const size_t blocks = div_up(bytes, kBlock);
  const AlignedBuffer buffer(blocks * kBlock);
  // Untouched pages are all one page of zeros, which the cache holds.
  std::memset(buffer.data(), 1, buffer.size());
  const Sum sum_block = widest();
  ThreadPool pool(threads);
  std::atomic<uint64_t> total{0};  // used, so that no compiler leaves the reading out
  double best = 0.0;
  for (int pass = 0; pass < passes; ++pass) {
    const auto begin = std::chrono::steady_clock::now();
    pool.run_neighbours(blocks, [&](size_t block, int) { total += sum_block(buffer.data() + block * kBlock, kBlock); });
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    best = std::max(best, static_cast<double>(buffer.size()) / seconds);
  }
  if (total != static_cast<uint64_t>(passes) * (buffer.size() / 8) * 0x0101010101010101u)
    throw std::logic_error("memory was read wrongly");
  return best;
}

}  // namespace ernie
