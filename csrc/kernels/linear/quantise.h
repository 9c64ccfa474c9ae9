// Codes and scales of one group of weights of one row, chosen without calibration: nearest rounding.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ernie {

struct GroupCodes {
  uint16_t scale;      // bfloat16
  uint8_t subs[16];    // int4: factor of every 16 columns
  int8_t codes[256];
};

// `n` is at most 256. A group with a NaN or an infinity gets the scale NaN. All zero, or nearly: scale and codes zero.
void quantise_int8(const float* weights, size_t n, GroupCodes* out);
void quantise_int6(const float* weights, size_t n, GroupCodes* out);
void quantise_int4(const float* weights, size_t n, GroupCodes* out);

}  // namespace ernie
