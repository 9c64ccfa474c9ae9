#include "base/helper.h"

#include <unistd.h>

#include <system_error>
#include <utility>

#include "base/float_mode.h"
#include "base/spin.h"

namespace ernie {

Helper::Helper() : process_(getpid()) {}

Helper::~Helper() {
  if (!thread_.joinable()) return;
  if (getpid() != process_) {  // a copy of a thread that is not there: it can be neither joined nor detached
    new std::thread(std::move(thread_));
    return;
  }
  state_.store(kStopped, std::memory_order_release);
  state_.notify_all();
  thread_.join();
}

void Helper::start() {
  try {
    thread_ = std::thread([this] { work(); });
  } catch (const std::system_error&) {  // the owner does all, later
  }
}

void Helper::begin(std::function<bool()> stage) {
  if (!thread_.joinable()) start();
  stage_ = std::move(stage);
  wanted_.store(false, std::memory_order_relaxed);
  state_.store(kBegun, std::memory_order_release);
  state_.notify_all();
}

void Helper::take_over() {
  if (getpid() != process_) return;
  wanted_.store(true, std::memory_order_relaxed);
  uint32_t begun = kBegun;
  if (!state_.compare_exchange_strong(begun, kIdle, std::memory_order_acquire)) wait_while(kWorking);
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void Helper::wait_while(uint32_t state) {
  for (int spin = 0; spin < kSpins && state_.load(std::memory_order_acquire) == state; ++spin) relax();
  while (state_.load(std::memory_order_acquire) == state) state_.wait(state, std::memory_order_acquire);
}

void Helper::work() {
  const DefaultFloatMode mode;
  for (;;) {
    wait_while(kIdle);
    uint32_t begun = kBegun;
    if (!state_.compare_exchange_strong(begun, kWorking, std::memory_order_acquire)) {
      if (begun == kStopped) return;
      continue;  // the owner was faster
    }
    try {
      while (!wanted_.load(std::memory_order_relaxed) && stage_()) {
      }
    } catch (...) {
      error_ = std::current_exception();
    }
    state_.store(kIdle, std::memory_order_release);
    state_.notify_all();
  }
}

}  // namespace ernie
