// A thread that begins somebody's work, until they have time to go on with it themselves.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <thread>

namespace ernie {

// Its owner calls the methods from one thread at a time. The thread starts with the first `begin`; where the system starts
// none, all is left to the owner.
class Helper {
 public:
  Helper();
  ~Helper();  // nothing may be begun
  Helper(const Helper&) = delete;
  Helper& operator=(const Helper&) = delete;

  // Has the thread call `stage` again and again, until that returns false or somebody takes over.
  void begin(std::function<bool()> stage);

  // Waits for the stage that is under way, if one is; from then on the thread calls none. What was done is visible to the
  // caller. Throws what a stage threw. In a forked child, which has no such thread, returns at once.
  void take_over();

 private:
  void start();
  void work();
  void wait_while(uint32_t state);

  static constexpr uint32_t kIdle = 0, kBegun = 1, kWorking = 2, kStopped = 3;
  std::atomic<uint32_t> state_{kIdle};
  std::atomic<bool> wanted_{false};
  std::function<bool()> stage_;
  std::exception_ptr error_;
  std::thread thread_;
  int process_;
};

}  // namespace ernie
