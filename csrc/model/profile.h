// Where the time of steps goes: one clock, read by the calling thread at the end of each part of a step.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>

namespace ernie {

enum class Part { embed, norm, qkv, attention, context, o, gate_up, down, router, experts_gate_up, experts_down, combine, head, select, count };

inline constexpr std::array<const char*, static_cast<size_t>(Part::count)> kPartNames = {
    "embed", "norm", "qkv", "attention", "context", "o", "gate_up", "down", "router", "experts_gate_up", "experts_down",
    "combine", "head", "select"};

class Profile {
 public:
  struct Entry {
    uint64_t calls = 0, bytes = 0;
    double seconds = 0.0;
  };

  void begin_step() {
    ++steps_;
    last_ = Clock::now();
  }
  // What was done since the last mark belongs to `part`; `bytes` are those that it had to read.
  void mark(Part part, size_t bytes) {
    const Clock::time_point now = Clock::now();
    Entry& entry = entries_[static_cast<size_t>(part)];
    ++entry.calls;
    entry.bytes += bytes;
    entry.seconds += std::chrono::duration<double>(now - last_).count();
    last_ = now;
  }
  const std::array<Entry, static_cast<size_t>(Part::count)>& entries() const { return entries_; }
  uint64_t steps() const { return steps_; }

 private:
  using Clock = std::chrono::steady_clock;
  std::array<Entry, static_cast<size_t>(Part::count)> entries_{};
  uint64_t steps_ = 0;
  Clock::time_point last_;
};

}  // namespace ernie
