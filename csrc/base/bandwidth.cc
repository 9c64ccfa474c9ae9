#include "base/bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "base/memory.h"
#include "base/thread_pool.h"

namespace ernie {
namespace {

constexpr size_t kBlock = size_t{256} << 10;  // a task; threads finish a pass together to within one

// Reads every byte. Sixteen sums that do not wait for one another; compilers make vectors of them.
uint64_t sum(const uint8_t* data, size_t bytes) {
  uint64_t sums[16] = {};
  uint64_t words[16];
  for (size_t at = 0; at < bytes; at += sizeof(words)) {
    std::memcpy(words, data + at, sizeof(words));
    for (size_t i = 0; i < 16; ++i) sums[i] += words[i];
  }
  uint64_t total = 0;
  for (uint64_t part : sums) total += part;
  return total;
}

}  // namespace

double read_bandwidth(size_t bytes, int threads, int passes) {
  if (bytes == 0 || threads < 1 || passes < 1) throw std::invalid_argument("bytes, threads and passes must be at least 1");
  const size_t blocks = div_up(bytes, kBlock);
  const AlignedBuffer buffer(blocks * kBlock);
  // Untouched pages are all one page of zeros, which the cache holds.
  std::memset(buffer.data(), 1, buffer.size());
  ThreadPool pool(threads);
  std::atomic<uint64_t> total{0};  // used, so that no compiler leaves the reading out
  double best = 0.0;
  for (int pass = 0; pass < passes; ++pass) {
    const auto begin = std::chrono::steady_clock::now();
    pool.run(blocks, [&](size_t block, int) { total += sum(buffer.data() + block * kBlock, kBlock); });
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    best = std::max(best, static_cast<double>(buffer.size()) / seconds);
  }
  if (total != static_cast<uint64_t>(passes) * (buffer.size() / 8) * 0x0101010101010101u)
    throw std::logic_error("memory was read wrongly");
  return best;
}

}  // namespace ernie
