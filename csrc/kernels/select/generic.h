// Plain loops over short arrays, which the compiler turns into vectors of each instruction set.
#pragma once

#include <bit>
#include <limits>

#include "kernels/select/passes.h"

namespace ernie::ERNIE_VARIANT {

inline constexpr float kNoLogit = -std::numeric_limits<float>::infinity();
inline constexpr size_t kChunk = 32;  // values that are weighed together

static Scanned scan(const float* x, size_t n, float* block_tops) {
  const F16 lowest = f_set1(-std::numeric_limits<float>::max());
  F16 poison = f_zero();
  float top = kNoLogit;
  for (size_t start = 0; start < n; start += kScanBlock) {
    float padded[kScanBlock];
    const float* from = x + start;
    if (n - start < kScanBlock) {
      for (size_t i = 0; i < kScanBlock; ++i) padded[i] = i < n - start ? from[i] : kNoLogit;
      from = padded;
    }
    F16 largest = f_set1(kNoLogit);
    for (size_t i = 0; i < kScanBlock; i += 16) {
      const F16 v = f_load(from + i);
      largest = f_max(v, largest);
      poison = f_fma(f_max(lowest, v), f_zero(), poison);  // -inf may be, NaN and +inf may not
    }
    const float block_top = f_maximum(largest);
    block_tops[start / kScanBlock] = block_top;
    top = block_top > top ? block_top : top;
  }
  return {top, !(f_sum(poison) == 0.0f)};
}

static void forbid(const uint32_t* mask, float* x, size_t n) {
  size_t i = 0;
  for (; i + 32 <= n; i += 32) {
    const uint32_t word = mask[i / 32];
    for (uint32_t bit = 0; bit < 32; ++bit) x[i + bit] = (word >> bit & 1u) != 0 ? x[i + bit] : kNoLogit;
  }
  for (; i < n; ++i)
    if ((mask[i / 32] >> (i % 32) & 1u) == 0) x[i] = kNoLogit;
}

// 2^(bits + (x - top) * factor) of kChunk values; below 2^(bits - 64), and where there is no number, that.
static inline void exp2_chunk(const float* x, double top, double factor, int bits, double* out) {
  constexpr double kShift = 0x1.8p52;  // adding it rounds to a whole number and leaves that in the low bits
  const uint64_t bias = static_cast<uint64_t>(1023 + bits) - std::bit_cast<uint64_t>(kShift);
  double exponents[kChunk];
  for (size_t i = 0; i < kChunk; ++i) {
    const double y = (x[i] - top) * factor;
    exponents[i] = x[i] > kNoLogit ? y : -64.0;
  }
  for (size_t i = 0; i < kChunk; ++i) {
    const double y = exponents[i] > -64.0 ? exponents[i] : -64.0;
    const double shifted = y + kShift;
    const double f = y - (shifted - kShift);
    double p = kExp2[11];
    for (int k = 10; k >= 0; --k) p = p * f + kExp2[k];
    const uint64_t power = (std::bit_cast<uint64_t>(shifted) + bias) << 52;
    out[i] = p * std::bit_cast<double>(power);
  }
}

static inline void weigh_chunk(const Weighing& how, const float* x, int64_t* weights, uint16_t* ranks, Weighed* sums) {
  constexpr double kShift = 0x1.8p52;
  double values[kChunk];
  exp2_chunk(x, how.top, how.factor, kWeightBits, values);
  int64_t total = 0, kept = 0;
  for (size_t i = 0; i < kChunk; ++i) {
    const int64_t weight = std::bit_cast<int64_t>(values[i] + kShift) - std::bit_cast<int64_t>(kShift);
    weights[i] = weight;
    total += weight;
    kept += weight >= how.least ? weight : 0;
  }
  sums->total += total;
  sums->kept += kept;
  constexpr float kLast = kRanks - 1;
  for (size_t i = 0; i < kChunk; ++i) {
    const float rank = (how.top - x[i]) * how.rank_step;
    ranks[i] = static_cast<uint16_t>(static_cast<int32_t>(rank < kLast ? rank : kLast));
  }
}

static Weighed weigh(const Weighing& how, const float* x, size_t n, int64_t* weights, uint16_t* ranks) {
  Weighed sums{0, 0};
  size_t start = 0;
  for (; start + kChunk <= n; start += kChunk) weigh_chunk(how, x + start, weights + start, ranks + start, &sums);
  if (start == n) return sums;
  float tail[kChunk];
  int64_t tail_weights[kChunk];
  uint16_t tail_ranks[kChunk];
  for (size_t i = 0; i < kChunk; ++i) tail[i] = start + i < n ? x[start + i] : kNoLogit;
  weigh_chunk(how, tail, tail_weights, tail_ranks, &sums);
  for (size_t i = 0; start + i < n; ++i) weights[start + i] = tail_weights[i], ranks[start + i] = tail_ranks[i];
  return sums;
}

static double sum_exp(const float* x, size_t n, float top) {
  double sums[kChunk] = {};
  for (size_t start = 0; start < n; start += kChunk) {
    float padded[kChunk];
    double values[kChunk];
    for (size_t i = 0; i < kChunk; ++i) padded[i] = start + i < n ? x[start + i] : kNoLogit;
    exp2_chunk(padded, top, kLog2E, 0, values);
    for (size_t i = 0; i < kChunk; ++i) sums[i] += values[i];
  }
  for (size_t half = kChunk / 2; half > 0; half /= 2)
    for (size_t i = 0; i < half; ++i) sums[i] += sums[i + half];
  return sums[0];
}

inline constexpr SelectKernels kSelectKernels = {scan, forbid, weigh, sum_exp};

}  // namespace ernie::ERNIE_VARIANT
