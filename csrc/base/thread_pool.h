// Threads that run one short parallel region after another.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace ernie {

class ThreadPool {
 public:
  // Throws std::runtime_error if the system does not start that many.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // The process's pool of that size: models that ask for the same number of threads share it, region by region.
  static std::shared_ptr<ThreadPool> shared(int threads);

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(task, thread) for every task in [0, tasks); returns when all are done. Tasks are handed out one by one,
  // so that threads finish together even when one of them is held up. The calling thread is thread 0 and takes part.
  // The first exception that a task throws is thrown again here; tasks that have begun are finished, the rest are not
  // called. `body` must not call `run`.
  template <typename Body>
  void run(size_t tasks, const Body& body) {
    run_in(1, tasks, body);
  }

  // The same, but each thread has a run of neighbouring tasks, as many for each, and takes from the others' when its own are
  // done: for tasks that read one after the other from memory, which then comes to each thread in one stream.
  template <typename Body>
  void run_neighbours(size_t tasks, const Body& body) {
    run_in(threads(), tasks, body);
  }

 private:
  using Call = void (*)(const void*, size_t, int);
  // Tasks that are handed out in order.
  struct alignas(64) Share {
    std::atomic<size_t> next{0};
    size_t end = 0;
  };

  template <typename Body>
  void run_in(int shares, size_t tasks, const Body& body) {
    if (tasks == 0) return;
    std::lock_guard<std::mutex> one_region_at_a_time(region_);
    if (tasks == 1 || workers_.empty()) {
      for (size_t task = 0; task < tasks; ++task) body(task, 0);
      return;
    }
    dispatch(
        shares, tasks, [](const void* ctx, size_t task, int thread) { (*static_cast<const Body*>(ctx))(task, thread); }, &body);
  }

  void dispatch(int shares, size_t tasks, Call call, const void* ctx);
  void work(int thread);
  void stop();
  void drain(int thread);

  std::mutex region_;
  // What a region is; written before `generation_` is raised.
  Call call_ = nullptr;
  const void* ctx_ = nullptr;
  int used_ = 1;  // of `shares_`
  std::unique_ptr<Share[]> shares_;  // [threads]
  bool stop_ = false;
  std::exception_ptr error_;
  std::atomic<bool> failed_{false};
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<int> busy_{0};
  std::vector<std::thread> workers_;
  int process_;
};

}  // namespace ernie
