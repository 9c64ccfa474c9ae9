// Chooses codes: see rounding.h.
#pragma once

#include <cmath>

#include "kernels/rounding/rounding.h"

namespace ernie::ERNIE_VARIANT {

inline constexpr size_t kRoundBlock = 16;  // columns that share a factor, and that are fed back together

static inline F16 round_bf16(F16 a) {
  uint16_t bits[16];
  f_store_bf16(bits, a);
  return f_load_bf16(bits);
}

// 1 / step, or 0 where step is 0 (or so small that the inverse is no number)
static inline F16 safe_inverse(F16 step) {
  float v[16];
  f_store(v, step);
  for (float& x : v) x = x > 1e-37f ? 1.0f / x : 0.0f;
  return f_load(v);
}

static inline F16 round_code(const Rounding& how, F16 target, F16 inverse) {
  return f_round(f_max(f_min(f_mul(target, inverse), f_set1(how.high)), f_set1(how.low)));
}

// Weighted squared error of columns [at, at + n) at one step a row.
static inline F16 step_error(const Rounding& how, const float* targets, size_t at, size_t n, F16 step) {
  const F16 inverse = safe_inverse(step);
  F16 sum = f_zero();
  for (size_t i = 0; i < n; ++i) {
    if (how.exact[at + i]) continue;
    const F16 t = f_load(targets + 16 * i);
    const F16 off = f_sub(t, f_mul(round_code(how, t, inverse), step));
    sum = f_fma(f_mul(off, off), f_set1(how.weigh[at + i]), sum);
  }
  return sum;
}

// Factors that are tried: below the one that clips nothing clipping may pay, but hardly by more than this.
inline constexpr int kFactorsBelow = 4;

// The smallest factor, at most 15, with which a block clips nothing, or next to nothing of one sign.
static inline F16 widest_factor(const Rounding& how, const float* targets, size_t at, size_t n, F16 scale) {
  F16 top = f_zero();
  for (size_t i = 0; i < n; ++i)
    if (!how.exact[at + i]) top = f_max(f_abs(f_load(targets + 16 * i)), top);
  const F16 factor = f_round(f_fma(top, f_mul(safe_inverse(scale), f_set1(1.0f / 7.5f)), f_set1(0.5f)));
  return f_min(f_max(factor, f_set1(1.0f)), f_set1(15.0f));
}

static inline F16 lower_factor(F16 widest, int below) {
  return f_max(f_sub(widest, f_set1(static_cast<float>(below))), f_set1(1.0f));
}

// ... of a group at one scale a row; in 4 bits every 16 columns take their best factor.
static inline F16 scale_error(const Rounding& how, const float* targets, size_t at, size_t n, F16 scale) {
  if (!how.factors) return step_error(how, targets, at, n, scale);
  F16 total = f_zero();
  for (size_t b = 0; b < n; b += kRoundBlock) {
    const size_t some = n - b < kRoundBlock ? n - b : kRoundBlock;
    const F16 widest = widest_factor(how, targets + 16 * b, at + b, some, scale);
    F16 least = f_set1(INFINITY);
    for (int below = 0; below <= kFactorsBelow; ++below)
      least = f_min(step_error(how, targets + 16 * b, at + b, some, f_mul(scale, lower_factor(widest, below))), least);
    total = f_add(total, least);
  }
  return total;
}

// The scale of a group: of those that `clips` names, the one with the least error.
static inline F16 best_scale(const Rounding& how, const float* targets, size_t at, size_t n) {
  F16 top = f_zero();
  for (size_t i = 0; i < n; ++i)
    if (!how.exact[at + i]) top = f_max(f_abs(f_load(targets + 16 * i)), top);
  // In 4 bits the widest columns take the factor 15; -8 serves one sign only, so 7.5 stands for the middle of both.
  const F16 whole = f_div(top, f_set1(how.factors ? 7.5f * 15.0f : how.high));
  float best[16], least[16], scale[16], error[16];
  for (int r = 0; r < 16; ++r) best[r] = 0.0f, least[r] = INFINITY;
  for (size_t c = 0; c < how.clip_count; ++c) {
    const F16 tried = round_bf16(f_mul(whole, f_set1(how.clips[c])));
    f_store(scale, tried);
    f_store(error, scale_error(how, targets, at, n, tried));
    for (int r = 0; r < 16; ++r)
      if (error[r] < least[r]) least[r] = error[r], best[r] = scale[r];
  }
  return f_load(best);
}

// One block of columns while it is rounded.
struct RoundBlock {
  size_t at, n;
  const float* weights;  // of the block, [n][16]
  const float* sums;     // of the block, [n][16]: what earlier columns add to (w - q) R
};

static inline F16 target_of(const Rounding& how, size_t j, F16 weight, F16 sum) {
  return how.reach == nullptr ? weight : f_fma(sum, f_set1(1.0f / how.reach[j * how.cols + j]), weight);
}

// Rounds a block at one step a row: the cost and, where they are not null, codes and w - q.
static inline F16 try_block(const Rounding& how, const RoundBlock& block, F16 step, float* codes, float* errors) {
  const F16 inverse = safe_inverse(step);
  F16 own[kRoundBlock], cost = f_zero();
  for (size_t i = 0; i < block.n; ++i) {
    const size_t j = block.at + i;
    const F16 w = f_load(block.weights + 16 * i);
    F16 sum = f_load(block.sums + 16 * i);
    if (how.reach != nullptr)
      for (size_t k = 0; k < i; ++k) sum = f_fma(own[k], f_set1(how.reach[j * how.cols + block.at + k]), sum);
    const F16 target = target_of(how, j, w, sum);
    const F16 code = how.exact[j] ? f_zero() : round_code(how, target, inverse);
    const F16 q = how.exact[j] ? round_bf16(target) : f_mul(code, step);
    const F16 off = f_sub(target, q);
    cost = f_fma(f_mul(off, off), f_set1(how.weigh[j]), cost);
    own[i] = f_sub(w, q);
    if (codes == nullptr) continue;
    f_store(codes + 16 * i, how.exact[j] ? q : code);
    f_store(errors + 16 * i, own[i]);
  }
  return cost;
}

// `targets` are those of the block before its own columns are fed back.
static inline F16 best_factor(const Rounding& how, const RoundBlock& block, const float* targets, F16 scale,
                              uint8_t* subs) {
  const F16 widest = widest_factor(how, targets, block.at, block.n, scale);
  float least[16], cost[16], best[16], factor[16];
  for (int r = 0; r < 16; ++r) least[r] = INFINITY, best[r] = 0.0f;
  for (int below = 0; below <= kFactorsBelow; ++below) {
    const F16 tried = lower_factor(widest, below);
    f_store(factor, tried);
    f_store(cost, try_block(how, block, f_mul(scale, tried), nullptr, nullptr));
    for (int r = 0; r < 16; ++r)
      if (cost[r] < least[r]) least[r] = cost[r], best[r] = factor[r];
  }
  for (int r = 0; r < 16; ++r) subs[r] = static_cast<uint8_t>(best[r]);
  return f_load(best);
}

// to += sum over i < n of e[i] * share[i].
static inline void add_shares(const F16* e, size_t n, const float* share, float* to) {
  F16 even = f_load(to), odd = f_zero();
  size_t i = 0;
  for (; i + 1 < n; i += 2) {
    even = f_fma(e[i], f_set1(share[i]), even);
    odd = f_fma(e[i + 1], f_set1(share[i + 1]), odd);
  }
  if (i < n) even = f_fma(e[i], f_set1(share[i]), even);
  f_store(to, f_add(even, odd));
}

// Adds what the block's errors do to later columns.
static inline void feed_back(const Rounding& how, size_t at, size_t n, const float* errors, float* sums) {
  F16 e[kRoundBlock];
  for (size_t i = 0; i < n; ++i) e[i] = f_load(errors + 16 * i);
  for (size_t j = at + n; j < how.cols; ++j) add_shares(e, n, how.reach + j * how.cols + at, sums + 16 * j);
}

static inline void write_block(const Rounding& how, const RoundBlock& block, const float* codes, const RoundedPanel& out) {
  for (size_t i = 0; i < block.n; ++i) {
    const size_t j = block.at + i;
    if (how.exact[j]) {
      f_store_bf16(out.exact + 16 * j, f_load(codes + 16 * i));
    } else {
      for (int r = 0; r < 16; ++r) out.codes[16 * j + r] = static_cast<int8_t>(codes[16 * i + r]);
    }
  }
}

static inline void set_targets(const Rounding& how, const float* weights, const float* sums, size_t at, size_t n,
                               float* targets) {
  for (size_t i = 0; i < n; ++i)
    f_store(targets + 16 * i, target_of(how, at + i, f_load(weights + 16 * (at + i)), f_load(sums + 16 * (at + i))));
}

static inline void round_group(const Rounding& how, const float* weights, size_t at, size_t n, const RoundedPanel& out,
                               float* sums, float* targets) {
  set_targets(how, weights, sums, at, n, targets);
  const F16 scale = best_scale(how, targets, at, n);
  f_store_bf16(out.scales + at / how.group * 16, scale);
  float codes[16 * kRoundBlock], errors[16 * kRoundBlock];
  for (size_t b = at; b < at + n; b += kRoundBlock) {
    const RoundBlock block{b, at + n - b < kRoundBlock ? at + n - b : kRoundBlock, weights + 16 * b, sums + 16 * b};
    F16 step = scale;
    if (how.factors) {
      set_targets(how, weights, sums, b, block.n, targets);
      step = f_mul(scale, best_factor(how, block, targets, scale, out.subs + b / kRoundBlock * 16));
    }
    try_block(how, block, step, codes, errors);
    write_block(how, block, codes, out);
    if (how.reach != nullptr) feed_back(how, b, block.n, errors, sums);
  }
}

static void round_panel(const Rounding& how, const float* weights, const RoundedPanel& out, float* scratch) {
  float* sums = scratch;
  float* targets = scratch + 16 * (how.cols + 16);
  for (size_t i = 0; i < 16 * how.cols; ++i) sums[i] = 0.0f, out.codes[i] = 0;
  for (size_t at = 0; at < how.cols; at += how.group)
    round_group(how, weights, at, how.cols - at < how.group ? how.cols - at : how.group, out, sums, targets);
}

// Rows [j, j + kCount) += sum over i < n of solved[i] * share[i * by_solved + j * by_row].
template <int kCount>
static inline void take_away(const float* solved, size_t n, const float* share, size_t by_solved, size_t by_row,
                             float* rows) {
  F16 sum[kCount][kSolvePanels];
  for (int j = 0; j < kCount; ++j)
    for (int p = 0; p < kSolvePanels; ++p) sum[j][p] = f_load(rows + kSolveLanes * j + 16 * p);
  for (size_t i = 0; i < n; ++i, share += by_solved) {
    F16 left[kSolvePanels];
    for (int p = 0; p < kSolvePanels; ++p) left[p] = f_load(solved + kSolveLanes * i + 16 * p);
    for (int j = 0; j < kCount; ++j) {
      const F16 factor = f_set1(share[static_cast<size_t>(j) * by_row]);
      for (int p = 0; p < kSolvePanels; ++p) sum[j][p] = f_fma(left[p], factor, sum[j][p]);
    }
  }
  for (int j = 0; j < kCount; ++j)
    for (int p = 0; p < kSolvePanels; ++p) f_store(rows + kSolveLanes * j + 16 * p, sum[j][p]);
}

// ... of rows [0, count).
static inline void take_away_all(const float* solved, size_t n, const float* share, size_t by_solved, size_t by_row,
                                 float* rows, size_t count) {
  size_t j = 0;
  for (; j + 4 <= count; j += 4) take_away<4>(solved, n, share + j * by_row, by_solved, by_row, rows + kSolveLanes * j);
  for (; j < count; ++j) take_away<1>(solved, n, share + j * by_row, by_solved, by_row, rows + kSolveLanes * j);
}

// Divides a row by what stands on the diagonal; `solved` is it with its sign turned.
static inline void divide_row(float* row, float diagonal, float* solved) {
  for (int p = 0; p < kSolvePanels; ++p) {
    const F16 value = f_div(f_load(row + 16 * p), f_set1(diagonal));
    f_store(row + 16 * p, value);
    f_store(solved + 16 * p, f_sub(f_zero(), value));
  }
}

static void solve_panels(const float* reach, size_t n, float* rows) {
  float solved[kRoundBlock * kSolveLanes];
  // u R^T = b from the last column on; R[j][k] = reach[k * n + j].
  for (size_t end = n; end > 0;) {
    const size_t begin = end > kRoundBlock ? end - kRoundBlock : 0;
    for (size_t j = end; j-- > begin;) {
      take_away<1>(solved + kSolveLanes * (j + 1 - begin), end - j - 1, reach + (j + 1) * n + j, n, 1, rows + kSolveLanes * j);
      divide_row(rows + kSolveLanes * j, reach[j * n + j], solved + kSolveLanes * (j - begin));
    }
    take_away_all(solved, end - begin, reach + begin * n, n, 1, rows, begin);
    end = begin;
  }
  // y R = u from the first column on; R[k][j] = reach[j * n + k].
  for (size_t begin = 0; begin < n; begin += kRoundBlock) {
    const size_t end = n - begin < kRoundBlock ? n : begin + kRoundBlock;
    for (size_t j = begin; j < end; ++j) {
      take_away<1>(solved, j - begin, reach + j * n + begin, 1, n, rows + kSolveLanes * j);
      divide_row(rows + kSolveLanes * j, reach[j * n + j], solved + kSolveLanes * (j - begin));
    }
    take_away_all(solved, end - begin, reach + end * n + begin, 1, n, rows + kSolveLanes * end, n - end);
  }
}

static void factor_update(const float* left, const float* panel, size_t row, size_t n, float* block) {
  F16 sum[16];
  for (int i = 0; i < 16; ++i) sum[i] = f_load(panel + 16 * (row + static_cast<size_t>(i)));
  for (size_t k = row + 16; k < n; ++k) {
    const F16 right = f_sub(f_zero(), f_load(panel + 16 * k));
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) sum[i] = f_fma(f_set1(left[16 * k + static_cast<size_t>(i)]), right, sum[i]);
  }
  for (int i = 0; i < 16; ++i) f_store(block + 16 * i, sum[i]);
}

static bool factor_diagonal(float* block) {
  for (int i = 15; i >= 0; --i) {
    for (int j = 0; j <= i; ++j)
      for (int k = i + 1; k < 16; ++k) block[16 * i + j] -= block[16 * k + i] * block[16 * k + j];
    if (!(block[17 * i] > 0.0f)) return false;
    const float pivot = sqrtf(block[17 * i]);
    for (int j = 0; j <= i; ++j) block[16 * i + j] /= pivot;
    for (int j = i + 1; j < 16; ++j) block[16 * i + j] = 0.0f;
  }
  return true;
}

static void factor_rows(const float* diagonal, float* block) {
  for (int i = 15; i >= 0; --i) {
    F16 row = f_load(block + 16 * i);
    for (int k = i + 1; k < 16; ++k)
      row = f_sub(row, f_mul(f_set1(diagonal[16 * k + i]), f_load(block + 16 * k)));
    f_store(block + 16 * i, f_div(row, f_set1(diagonal[17 * i])));
  }
}

inline constexpr RoundingKernels kRoundingKernels = {round_panel, solve_panels, factor_update, factor_diagonal, factor_rows};

}  // namespace ernie::ERNIE_VARIANT
