#include "base/thread_pool.h"

#include <unistd.h>

#include <algorithm>
#include <map>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>

#include "base/float_mode.h"
#include "base/spin.h"

namespace ernie {

ThreadPool::ThreadPool(int threads)
    : shares_(std::make_unique<Share[]>(static_cast<size_t>(threads > 1 ? threads : 1))), process_(getpid()) {
  workers_.reserve(threads > 1 ? threads - 1 : 0);
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
  } catch (const std::system_error& error) {
    const std::string started = std::to_string(workers_.size() + 1);
    stop();  // a thread that is destroyed before it is joined would end the process
    throw std::runtime_error("the system started " + started + " of " + std::to_string(threads) +
                             " threads: " + error.what() + "; ask for fewer");
  }
}

ThreadPool::~ThreadPool() {
  if (getpid() != process_) {
    // A forked child has a copy of the pool but none of its threads: they can be neither joined nor detached.
    new std::vector<std::thread>(std::move(workers_));
    return;
  }
  stop();
}

void ThreadPool::stop() {
  stop_ = true;
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (auto& worker : workers_) worker.join();
}

std::shared_ptr<ThreadPool> ThreadPool::shared(int threads) {
  static std::mutex mutex;
  static std::map<std::pair<int, int>, std::weak_ptr<ThreadPool>> pools;
  std::lock_guard<std::mutex> lock(mutex);
  auto& slot = pools[{getpid(), threads}];
  auto pool = slot.lock();
  if (!pool) slot = pool = std::make_shared<ThreadPool>(threads);
  return pool;
}

void ThreadPool::dispatch(int shares, size_t tasks, Call call, const void* ctx) {
  call_ = call;
  ctx_ = ctx;
  used_ = shares;
  const auto count = static_cast<size_t>(shares);
  for (size_t s = 0; s < count; ++s) {
    shares_[s].next.store(tasks / count * s + std::min(s, tasks % count), std::memory_order_relaxed);
    shares_[s].end = tasks / count * (s + 1) + std::min(s + 1, tasks % count);
  }
  busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  drain(0);
  for (int spin = 0; busy_.load(std::memory_order_acquire) != 0; ++spin) {
    if (spin < kSpins) {
      relax();
    } else {  // a worker lost its processor: let it have ours
      std::this_thread::yield();
    }
  }
  if (failed_.exchange(false)) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ThreadPool::drain(int thread) {
  for (int i = 0; i < used_; ++i) {
    Share& share = shares_[static_cast<size_t>((thread + i) % used_)];
    while (!failed_.load(std::memory_order_relaxed)) {
      const size_t task = share.next.fetch_add(1, std::memory_order_relaxed);
      if (task >= share.end) break;
      try {
        call_(ctx_, task, thread);
      } catch (...) {
        if (!failed_.exchange(true)) error_ = std::current_exception();
      }
    }
  }
}

void ThreadPool::work(int thread) {
  const DefaultFloatMode mode;
  uint32_t seen = 0;
  for (;;) {
    for (int spin = 0; generation_.load(std::memory_order_acquire) == seen && spin < kSpins; ++spin) relax();
    generation_.wait(seen, std::memory_order_acquire);
    seen = generation_.load(std::memory_order_acquire);
    if (stop_) return;
    drain(thread);
    busy_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace ernie
