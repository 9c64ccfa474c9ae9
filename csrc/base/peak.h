// How fast this machine multiplies int8: the ceiling of everything that reads each weight for many tokens.
#pragma once

namespace ernie {

// Operations a second (a multiplication and an addition count as two) of the dot products of AVX-512 VNNI on `threads`
// threads, out of registers: the best of `passes` passes. 0 where the processor has none. Throws std::invalid_argument for
// zeros.
double dot_product_peak(int threads, int passes);

}  // namespace ernie
