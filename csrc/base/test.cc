// Thread pool, arena, conversions.
#include "tests/testing.h"

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "base/bandwidth.h"
#include "base/bf16.h"
#include "base/float_mode.h"
#include "base/helper.h"
#include "base/peak.h"
#include "base/thread_pool.h"

using namespace ernie;

static void test_every_task_runs_once() {
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (size_t tasks : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(tasks);
      const auto body = [&](size_t task, int thread) {
        CHECK(thread >= 0 && thread < threads);
        ++runs[task];
      };
      pool.run(tasks, body);
      for (auto& count : runs) CHECK(count == 1);
      pool.run_neighbours(tasks, body);
      for (auto& count : runs) CHECK(count == 2);
    }
  }
}

// A thread takes its own run of tasks first, in order, and then from another's: here while that is held up by its first task
// until all others are done.
static void test_neighbours_stay_together() {
  constexpr size_t kTasks = 11, kMiddle = 6;
  ThreadPool pool(2);
  std::atomic<size_t> done{0};
  std::vector<size_t> order[2];
  pool.run_neighbours(kTasks, [&](size_t task, int thread) {
    order[thread].push_back(task);
    while (task == 0 && done < kTasks - 1) std::this_thread::yield();
    ++done;
  });
  for (size_t thread = 0; thread < 2; ++thread) {
    std::vector<size_t> own_first = order[thread];
    std::sort(own_first.begin(), own_first.end(), [&](size_t a, size_t b) {
      const bool a_foreign = (a >= kMiddle) != (thread == 1), b_foreign = (b >= kMiddle) != (thread == 1);
      return a_foreign != b_foreign ? b_foreign : a < b;
    });
    CHECK(order[thread] == own_first);
  }
  CHECK(order[0].size() + order[1].size() == kTasks);
}

static void test_many_short_regions() {
  ThreadPool pool(3);
  std::atomic<size_t> sum{0};
  for (int i = 0; i < 20000; ++i) pool.run(4, [&](size_t task, int) { sum += task; });
  CHECK(sum == 20000 * 6);
}

static void test_exceptions_reach_the_caller() {
  ThreadPool pool(2);
  for (int i = 0; i < 100; ++i) {
    const auto body = [](size_t task, int) { if (task % 7 == 3) throw std::runtime_error("task"); };
    CHECK_THROWS(pool.run(50, body), std::runtime_error);
    CHECK_THROWS(pool.run_neighbours(50, body), std::runtime_error);
  }
  int ran = 0;
  pool.run(1, [&](size_t, int) { ++ran; });
  CHECK(ran == 1);
}

static void test_models_share_a_pool() {
  auto first = ThreadPool::shared(2);
  auto second = ThreadPool::shared(2);
  CHECK(first == second);
  std::atomic<int> done{0};
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i)
    callers.emplace_back([&] {
      for (int j = 0; j < 200; ++j) first->run(3, [&](size_t, int) { ++done; });
    });
  for (auto& caller : callers) caller.join();
  CHECK(done == 4 * 200 * 3);
}

static void test_conversions() {
  CHECK(float_to_bf16(1.0f) == 0x3f80);
  CHECK(float_to_bf16(1.00390625f) == 0x3f80);  // half way: to even
  CHECK(float_to_bf16(1.01171875f) == 0x3f82);
  CHECK(std::isnan(bf16_to_float(float_to_bf16(NAN))));
  CHECK(std::isinf(bf16_to_float(float_to_bf16(INFINITY))));
  CHECK(fp16_to_float(0x3c00) == 1.0f);
  CHECK(fp16_to_float(0xc000) == -2.0f);
  CHECK(fp16_to_float(0x0001) == 0x1p-24f);
  CHECK(fp16_to_float(0x7bff) == 65504.0f);
  CHECK(std::isinf(fp16_to_float(0x7c00)) && std::isnan(fp16_to_float(0x7e00)));
}

static void test_arena() {
  Arena arena;
  const size_t a = arena.add(3), b = arena.add(100);
  arena.allocate();
  CHECK(a == 0 && b == 64 && arena.size() == 192);
  CHECK(reinterpret_cast<uintptr_t>(arena.at<float>(b)) % 64 == 0);
  for (size_t i = 0; i < 192; ++i) CHECK(arena.at<uint8_t>(0)[i] == 0);
  AlignedBuffer empty(0);
  CHECK(empty.data() == nullptr);
}

// Every stage is called once and in order, wherever the owner takes over, and the owner sees what was done.
static void test_a_helper_goes_first() {
  Helper helper;
  helper.take_over();  // of nothing
  size_t by_others = 0;
  for (int round = 0; round < 3000; ++round) {
    std::vector<int> done;
    std::atomic<size_t> count{0};
    std::set<std::thread::id> who;
    const auto stage = [&] {
      done.push_back(static_cast<int>(done.size()));
      who.insert(std::this_thread::get_id());
      return ++count < 50;
    };
    helper.begin(stage);
    if (round % 3 == 1) std::this_thread::yield();
    while (round % 10 == 2 && count < 20) std::this_thread::yield();
    helper.take_over();
    by_others += done.size();
    while (count < 50 && stage()) {
    }
    CHECK(done.size() == 50 && done.back() == 49 && who.size() <= 2);
  }
  CHECK(by_others >= 300 * 20);
}

static void test_what_a_helper_throws_reaches_its_owner() {
  Helper helper;
  for (int round = 0; round < 100; ++round) {
    std::atomic<bool> called{false};
    helper.begin([&]() -> bool {
      called = true;
      throw std::runtime_error("stage");
    });
    while (!called) std::this_thread::yield();
    CHECK_THROWS(helper.take_over(), std::runtime_error);
    helper.take_over();  // once
  }
}

// What the calling thread was set to reaches neither its own tasks inside a DefaultFloatMode nor those of the workers.
static void test_float_mode() {
  std::fesetround(FE_UPWARD);
  ThreadPool pool(3);
  std::atomic<int> wrong{0};
  {
    const DefaultFloatMode mode;
    pool.run(300, [&](size_t, int) { wrong += std::fegetround() != FE_TONEAREST; });
  }
  CHECK(wrong == 0 && std::fegetround() == FE_UPWARD);
  std::fesetround(FE_TONEAREST);
}

static void test_bandwidth() {
  for (int threads : {1, 3}) CHECK(read_bandwidth(1000000, threads, 2) > 0);  // no whole number of blocks
  CHECK_THROWS(read_bandwidth(0, 1, 1), std::invalid_argument);
  CHECK_THROWS(read_bandwidth(1, 0, 1), std::invalid_argument);
  CHECK_THROWS(read_bandwidth(1, 1, 0), std::invalid_argument);
}

static void test_peak() {
  const double peak = dot_product_peak(2, 1);
  CHECK(peak == 0 || (peak > 1e9 && peak < 1e16));
  CHECK_THROWS(dot_product_peak(0, 1), std::invalid_argument);
  CHECK_THROWS(dot_product_peak(1, 0), std::invalid_argument);
}

int main() {
  test_every_task_runs_once();
  test_neighbours_stay_together();
  test_many_short_regions();
  test_exceptions_reach_the_caller();
  test_models_share_a_pool();
  test_a_helper_goes_first();
  test_what_a_helper_throws_reaches_its_owner();
  test_float_mode();
  test_conversions();
  test_arena();
  test_bandwidth();
  test_peak();
  std::puts("base: ok");
}
