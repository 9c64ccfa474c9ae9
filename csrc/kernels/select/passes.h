// Passes over a whole row of logits, compiled for each instruction set; what select.cc is built from.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ernie {

inline constexpr size_t kScanBlock = 64;

struct Scanned {
  float top;  // -inf if there is no number
  bool bad;   // a NaN or +inf is among them
};

// Also gives the largest of every kScanBlock values, div_up(n, kScanBlock) of them; NaN counts for nothing.
using ScanFn = Scanned (*)(const float* x, size_t n, float* block_tops);

// Sets values to -inf whose bit is clear; bit i % 32 of word i / 32 belongs to value i.
using ForbidFn = void (*)(const uint32_t* mask, float* x, size_t n);

// The weight of a logit l beside the largest one, l0, is the whole number nearest to 2^kWeightBits * exp((l - l0) / T),
// computed as 2^(n + f) with n whole, |f| <= 1/2, and 2^f by its Taylor polynomial kExp2 in Horner's form, every operation
// rounded to double. Sums of whole numbers are exact: any order, and any instruction set, gives the same draw as the
// definition in ernie_accel/engine/sampling.py. A row of 2^22 weights stays below 2^63.
inline constexpr int kWeightBits = 40;
inline constexpr double kLog2E = 1.4426950408889634;
inline constexpr double kExp2[12] = {
    1.0, 0.6931471805599453, 0.24022650695910072, 0.05550410866482158,
    0.009618129107628477, 0.0013333558146428443, 0.0001540353039338161, 1.5252733804059841e-05,
    1.321548679014431e-06, 1.01780860092397e-07, 7.054911620801123e-09, 4.4455382718708116e-10};

inline constexpr size_t kRanks = 2048;

struct Weighing {
  float top;         // l0
  double factor;     // log2(e) / T
  float rank_step;   // ranks for each unit of logit
  int64_t least;     // weights below it do not count in `kept`
};
struct Weighed {
  int64_t total, kept;
};

// Gives every value's weight and its rank: kRanks intervals of equal width from the top down, the last one open. A lower
// rank is never a lower logit.
using WeighFn = Weighed (*)(const Weighing& how, const float* x, size_t n, int64_t* weights, uint16_t* ranks);

// The sum of exp(x - top), each with a relative error below 1e-14; a NaN or +inf counts for nothing.
using SumExpFn = double (*)(const float* x, size_t n, float top);

struct SelectKernels {
  ScanFn scan;
  ForbidFn forbid;
  WeighFn weigh;
  SumExpFn sum_exp;
};

}  // namespace ernie
