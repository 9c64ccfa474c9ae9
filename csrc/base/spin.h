// Waiting for another thread without giving the processor away at once.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#else
#include <thread>
#endif

namespace ernie {

// About 50 microseconds: longer than the gap between two regions of a step, short enough to leave an idle machine idle.
constexpr int kSpins = 2000;

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

}  // namespace ernie
