// Activations into the form that a matrix multiplies.
#pragma once

#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/linear/linear.h"

namespace ernie::ERNIE_VARIANT {

static inline int32_t sum_of_bytes(const int8_t* bytes) {
  int32_t sum = 0;
  for (size_t i = 0; i < kSubColumns; ++i) sum += bytes[i];
  return sum;
}

// One group: scale = largest magnitude / 127, bytes rounded to nearest even. Bytes cannot hold a NaN or an infinity; a
// group that has one gets the scale NaN, so that it shows in the result. Magnitudes are compared as whole numbers, among
// which those two are the largest. Groups of kCols columns; n if that is 0.
template <size_t kCols>
static inline void quantise_group(const float* x, size_t n, int8_t* bytes, float* scale, int32_t* offset, int32_t* fine) {
  const size_t end = kCols == 0 ? n : kCols;
  I16 largest = i_set1(0);
  for (size_t i = 0; i < end; i += 16) largest = i_max(largest, i_field(i_load(x + i), 0, 0x7fffffff));
  const int32_t bits = i_maximum(largest);
  const float top = bits < 0x7f800000 ? std::bit_cast<float>(bits) : NAN;
  // Below 4e-37, zero included, the inverse is not finite: such a group becomes zero.
  const float factor = 127.0f / top;
  const F16 inverse = f_set1(factor <= 3.4e38f ? factor : 0.0f);
  F16 sum = f_zero();
  for (size_t i = 0; i < end; i += 16) {
    const F16 whole = f_round(f_mul(f_load(x + i), inverse));
    f_store_s8(bytes + i, whole);
    sum = f_add(sum, whole);
    if (fine != nullptr) fine[i / kSubColumns] = -8 * sum_of_bytes(bytes + i);
  }
  *scale = top / 127.0f;
  const float total = f_sum(sum);
  *offset = total == total ? -128 * static_cast<int32_t>(total) : 0;
}

// As above, of columns [col, col + n) of a matrix with exact columns among them, of which the first is the e-th; gives
// the first that comes after.
static inline size_t quantise_around(const Matrix& w, const float* x, size_t col, size_t n, size_t e, const Rows& out, size_t row) {
  float copy[kMaxGroup];
  if (e < w.exact_count && static_cast<size_t>(w.exact[e]) < col + n) {
    std::memcpy(copy, x, n * sizeof(float));
    x = copy;
    for (; e < w.exact_count && static_cast<size_t>(w.exact[e]) < col + n; ++e) {
      float& value = copy[static_cast<size_t>(w.exact[e]) - col];
      out.exact[row * kMaxExact + e] = value;
      value = 0.0f;
    }
  }
  int8_t* bytes = reinterpret_cast<int8_t*>(out.data + row * out.stride) + col;
  const size_t at = row * out.groups + col / w.group;
  int32_t* fine = w.precision == Precision::int4 ? out.fine + row * out.fine_stride + col / kSubColumns : nullptr;
  if (n == 64) {
    quantise_group<64>(x, n, bytes, out.scales + at, out.offsets + at, fine);
  } else if (n == 32) {
    quantise_group<32>(x, n, bytes, out.scales + at, out.offsets + at, fine);
  } else {
    quantise_group<0>(x, n, bytes, out.scales + at, out.offsets + at, fine);
  }
  return e;
}

static void prepare(const Matrix& w, const float* x, size_t col, size_t n, const Rows& out, size_t row) {
  uint8_t* data = out.data + row * out.stride;
  if (w.precision == Precision::fp32) {
    for (size_t i = 0; i < n; i += 16) f_store(reinterpret_cast<float*>(data) + col + i, f_load(x + i));
  } else if (w.precision == Precision::bf16) {
    uint16_t* to = reinterpret_cast<uint16_t*>(data) + col;
    for (size_t i = 0; i < n; i += 16) f_store_bf16(to + i, f_load(x + i));
    const size_t end = (n + 15) / 16 * 16;
    if ((col + end) % 32 == 16) f_store_bf16(to + end, f_zero());  // the matrix has 32 columns at a time
  } else {
    const size_t end = (n + 15) / 16 * 16;
    size_t e = 0;
    while (e < w.exact_count && static_cast<size_t>(w.exact[e]) < col) ++e;
    for (size_t i = 0; i < end; i += w.group)
      e = quantise_around(w, x + i, col + i, end - i < w.group ? end - i : w.group, e, out, row);
  }
}

}  // namespace ernie::ERNIE_VARIANT
