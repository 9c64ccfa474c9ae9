// Codes and scales of one group of weights of one row, chosen without calibration: nearest rounding.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/linear/linear.h"

namespace ernie {

struct GroupCodes {
  uint16_t scale;      // bfloat16
  uint8_t subs[kMaxGroup / kSubColumns];  // int4: factor of every 16 columns
  int8_t codes[kMaxGroup];
};

// `n` is a multiple of 16 up to 256. Precision int8, nested8, nested6 or int4. A group with a NaN or an infinity gets the
// scale NaN. All zero, or nearly: scale and codes zero. All variants give the same bits.
using QuantiseFn = void (*)(Precision precision, const float* weights, size_t n, GroupCodes* out);

}  // namespace ernie
