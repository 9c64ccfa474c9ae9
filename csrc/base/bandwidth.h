// How fast this machine reads memory: the ceiling of everything that reads each weight once.
#pragma once

#include <cstddef>

namespace ernie {

// Bytes a second that `threads` threads together read from a buffer of `bytes`, the best of `passes` passes over it. The
// buffer should be several times as large as the last cache. Throws std::invalid_argument for zeros, std::bad_alloc.
double read_bandwidth(size_t bytes, int threads, int passes);

}  // namespace ernie
