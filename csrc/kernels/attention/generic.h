#pragma once

#include <type_traits>

#include "kernels/attention/attention.h"
#include "kernels/attention/block.h"
#include "kernels/attention/dots.h"
#include "kernels/attention/softmax.h"
#include "kernels/attention/store.h"
#if defined(__AMX_TILE__)
#include "kernels/attention/tiles.h"
#endif

namespace ernie::ERNIE_VARIANT {

// One tile of rows against one block.
template <typename D, bool kScaled>
static void attend_tile(const Attend& a, const Block& block, size_t first_row, size_t rows, float* scratch, Ahead* ahead) {
  using Weight = typename D::Weight;
  float* scores = scratch;
  float* sums = scores + kAttentionTile * kAttentionBlock;
  Weight* weights = reinterpret_cast<Weight*>(sums + kAttentionTile * a.padded_d);
  const auto seen = [&](size_t row) {  // keys of the block
    const size_t end = a.first_position + row / a.heads + 1;
    return end < block.begin ? 0 : end - block.begin < kAttentionBlock ? end - block.begin : kAttentionBlock;
  };
  const size_t pages = (seen(first_row + rows - 1) + kPageTokens - 1) / kPageTokens;
  const size_t filled = (pages + 1) / 2 * 2;
  score_rows<D>(a, block, first_row, rows, pages, scores, ahead);
  float shifts[kAttentionTile], totals[kAttentionTile];
  for (size_t r = 0; r < rows; ++r)
    shifts[r] = shift_of<kScaled>(scores + r * kPageTokens, seen(first_row + r), block.scales);
  for (size_t r = 0; r < rows; ++r)
    totals[r] = weigh<Weight, kScaled>(scores + r * kPageTokens, seen(first_row + r), filled, shifts[r], block.scales,
                                       weights + r * (kPageTokens * sizeof(float) / sizeof(Weight)));
  weigh_values<D>(a, block, rows, pages, weights, sums, ahead);
  for (size_t r = 0; r < rows; ++r) {
    const size_t row = first_row + r;
    float* out = a.to.out + row / a.heads * a.to.token_stride + row % a.heads * a.padded_d;
    const float* add = sums + r * a.padded_d;
    if (block.begin == a.span) {
      a.to.shift[row] = shifts[r];
      a.to.sum[row] = totals[r];
      for (size_t j = 0; j < a.padded_d; j += 16) f_store(out + j, f_load(add + j));
    } else if (totals[r] != 0.0f) {
      join_values(out, add, join_row(&a.to.shift[row], &a.to.sum[row], shifts[r], totals[r]), a.padded_d);
    }
  }
}

// Whether every value that some of the task's tokens see and others do not is finite.
template <typename D>
static bool hidden_values_are_finite(const Attend& a) {
  if (a.precision == KvPrecision::int8) return true;  // bytes are always numbers
  using Bits = std::conditional_t<D::kUnitTokens == 1, uint32_t, uint16_t>;
  constexpr Bits kExponent = D::kUnitTokens == 1 ? static_cast<Bits>(0x7f800000u) : static_cast<Bits>(0x7f80u);
  const size_t last = a.first_position + a.tokens - 1;
  for (size_t page = (a.first_position + 1) / kPageTokens; page <= last / kPageTokens; ++page) {
    const Bits* values = reinterpret_cast<const Bits*>(a.pages[page] + a.head + a.layout.values);
    bool finite = true;
    for (size_t i = 0; i < kPageTokens * a.padded_d; ++i) finite &= (values[i] & kExponent) != kExponent;
    if (!finite) return false;
  }
  return true;
}

template <typename D, bool kScaled>
static void attend_tokens(const Attend& a) {
  float* tile = reinterpret_cast<float*>(a.scratch);
  const Blocks<D> blocks(a, a.scratch + kAttentionTile * (2 * kAttentionBlock + a.padded_d) * sizeof(float));
  const size_t rows = a.tokens * a.heads;
  const size_t total = a.first_position + a.tokens;
  const size_t end = total < a.span + kAttentionSpan ? total : a.span + kAttentionSpan;
  for (size_t row = 0; row < rows; ++row) a.to.sum[row] = 0.0f;
  for (size_t begin = a.span; begin < end; begin += kAttentionBlock) {
    Block block;
    const size_t next = end < begin + kAttentionBlock ? end : begin + kAttentionBlock;
    Ahead ahead(a, next, end < next + kAttentionBlock ? end : next + kAttentionBlock);
    blocks.cut(begin, next, &block, &ahead);
    // Rows of tokens before the block see nothing of it; in the first they are given their empty result.
    const size_t unseen = begin > a.first_position && begin > a.span ? (begin - a.first_position) * a.heads : 0;
    for (size_t row = unseen; row < rows; row += kAttentionTile)
      attend_tile<D, kScaled>(a, block, row, rows - row < kAttentionTile ? rows - row : kAttentionTile, tile, &ahead);
  }
}

// Where a token's value is no number, a weight of zero would not keep it from tokens that do not see it: then each
// token goes alone.
template <typename D, bool kScaled>
static void attend_as(const Attend& a) {
  if (a.tokens == 1 || hidden_values_are_finite<D>(a)) return attend_tokens<D, kScaled>(a);
  for (size_t t = 0; t < a.tokens; ++t) {
    Attend one = a;
    one.q += t * a.heads * a.query_bytes;
    one.tokens = 1;
    one.first_position += t;
    one.to = {a.to.out + t * a.to.token_stride, a.to.token_stride, a.to.shift + t * a.heads, a.to.sum + t * a.heads};
    attend_tokens<D, kScaled>(one);
  }
}

static void attend(const Attend& task) {
  if (task.precision == KvPrecision::fp32) return attend_as<DotF32, false>(task);
#if defined(__AMX_TILE__)
  const Tiles tiles(attention_tiles());
#endif
  if (task.precision == KvPrecision::bf16) return attend_as<DotBf16, false>(task);
  attend_as<DotBf16, true>(task);
}

}  // namespace ernie::ERNIE_VARIANT
