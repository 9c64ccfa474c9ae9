#pragma once

#include <cstring>

#include "kernels/attention/attention.h"
#include "kernels/attention/expand.h"
#include "kernels/attention/softmax.h"

namespace ernie::ERNIE_VARIANT {

inline constexpr size_t kBlockPages = kAttentionBlock / kPageTokens;

#if defined(__AMX_TILE__)
// A tile takes 32 tokens, so two pages' values must lie together.
inline constexpr bool kJoinPages = true;
#else
inline constexpr bool kJoinPages = false;
#endif

// The element that is multiplied: how its 4-byte units and 64-byte lines are loaded.
struct DotF32 {
  using Weight = float;
  using Line = F16;
  using Unit = F16;
  static constexpr size_t kUnitTokens = 1;
  static inline Line line(const uint8_t* p) { return f_load(reinterpret_cast<const float*>(p)); }
  static inline Unit unit(const uint8_t* p) { return f_set1(*reinterpret_cast<const float*>(p)); }
  static inline F16 dot(F16 acc, const Line& line, const Unit& unit) { return f_fma(unit, line, acc); }
};
struct DotBf16 {
  using Weight = uint16_t;
  using Line = LineBf16;
  using Unit = PairBf16;
  static constexpr size_t kUnitTokens = 2;
  static inline Line line(const uint8_t* p) { return load_line_bf16(p); }
  static inline Unit unit(const uint8_t* p) { return load_pair_bf16(reinterpret_cast<const uint16_t*>(p)); }
  static inline F16 dot(F16 acc, const Line& line, const Unit& unit) { return dot_bf16(acc, line, unit); }
};

// One block as the dot products read it: in the page, or in scratch memory where it must be changed first. With
// kJoinPages, keys are repeated up to a multiple of four pages, and the values of an even page have those of the odd
// page after it in the same tiles.
struct Block {
  size_t begin, pages;
  const uint8_t* keys[kBlockPages];
  const uint8_t* values[kBlockPages];
  size_t value_stride;  // bytes from 16 dimensions to the next
  BlockScales scales;
};

// Asks for the pages of the next block while this one is worked on: pages lie apart, and the processor's own prefetching
// ends with each. Worth 15 % of decoding where dot products or int8 take most of the time between two reads, and nothing
// where AMX copies values anyway.
class Ahead {
 public:
  Ahead(const Attend& a, size_t begin, size_t end) : a_(a), page_(begin / kPageTokens), end_((end + kPageTokens - 1) / kPageTokens) {}
  void lines(size_t count) {
    while (page_ < end_) {
      const uint8_t* from = a_.pages[page_] + a_.head;
      for (; at_ < a_.layout.bytes; at_ += 64) {
        if (count-- == 0) return;
        __builtin_prefetch(from + at_, 0, 2);
      }
      at_ = 0;
      ++page_;
    }
  }

 private:
  const Attend& a_;
  size_t page_, end_, at_ = 0;
};

// Values of `kept` tokens of a page, 16 dimensions after 16 dimensions; zeros in place of the others.
template <typename D>
static inline void copy_values(const uint8_t* from, size_t kept, size_t blocks, uint8_t* to, size_t to_stride) {
  constexpr size_t kLines = kPageTokens / D::kUnitTokens;
  const size_t whole = kept / D::kUnitTokens;
  for (size_t j = 0; j < blocks; ++j, to += to_stride) {
    const uint8_t* source = from + j * kLines * 64;
    for (size_t line = 0; line < whole; ++line)
      f_store(reinterpret_cast<float*>(to + line * 64), f_load(reinterpret_cast<const float*>(source + line * 64)));
    for (size_t line = whole; line < kLines; ++line) f_store(reinterpret_cast<float*>(to + line * 64), f_zero());
    if (kept % D::kUnitTokens == 0) continue;
    for (size_t i = 0; i < 64; i += 4) std::memcpy(to + whole * 64 + i, source + whole * 64 + i, 2);
  }
}

static inline void expand_values(const uint8_t* from, size_t blocks, uint8_t* to, size_t to_stride) {
  for (size_t j = 0; j < blocks; ++j)
    for (size_t two = 0; two < 4; ++two) expand_two_lines(from + j * 256 + two * 64, to + j * to_stride + two * 128);
}

// Cuts blocks out of one span for one task.
template <typename D>
class Blocks {
 public:
  Blocks(const Attend& task, uint8_t* scratch)
      : a_(task), padded_keys_((task.d + 31) / 32 * 32), keys_(scratch), values_(scratch + kBlockPages * padded_keys_ * 32) {}

  // Keys [begin, end), begin a multiple of kAttentionBlock.
  void cut(size_t begin, size_t end, Block* b, Ahead* ahead) const {
    b->begin = begin;
    b->pages = (end - begin + kPageTokens - 1) / kPageTokens;
    b->value_stride = (kJoinPages && D::kUnitTokens == 2 ? 2 : 1) * kLineBytesPerPage;
    for (size_t p = 0; p < b->pages; ++p) {
      place(b, p);
      if (a_.precision == KvPrecision::int8) ahead->lines(a_.layout.bytes / 64);
    }
    if constexpr (kJoinPages && D::kUnitTokens == 2) fill_up(b);
  }

 private:
  static constexpr size_t kLineBytesPerPage = kPageTokens / D::kUnitTokens * 64;

  void place(Block* b, size_t p) const {
    const size_t first = b->begin + p * kPageTokens;
    const uint8_t* head = a_.pages[first / kPageTokens] + a_.head;
    const uint8_t* values = head + a_.layout.values;
    uint8_t* slot = value_slot(b, p);
    b->keys[p] = head;
    b->values[p] = slot;
    const size_t blocks = a_.padded_d / 16;
    if (a_.precision == KvPrecision::int8) {
      uint8_t* keys = keys_ + p * padded_keys_ * 32;
      for (size_t i = 0; i < padded_keys_ / 4; ++i) expand_two_lines(head + i * 64, keys + i * 128);
      b->keys[p] = keys;
      expand_values(values, blocks, slot, b->value_stride);
      b->scales.keys[p] = reinterpret_cast<const float*>(head + a_.layout.key_scales);
      b->scales.values[p] = reinterpret_cast<const float*>(head + a_.layout.value_scales);
    } else if (const size_t kept = visible(first); kept < kPageTokens || (kJoinPages && D::kUnitTokens == 2)) {
      copy_values<D>(values, kept, blocks, slot, b->value_stride);
    } else {
      b->values[p] = values;
    }
  }

  // Tokens of a page that any row sees. What else the page holds, of a sequence that is gone or not written yet, may be
  // no number, which a weight of zero would not keep away.
  size_t visible(size_t first) const {
    const size_t total = a_.first_position + a_.tokens;
    return total - first < kPageTokens ? total - first : kPageTokens;
  }

  uint8_t* value_slot(const Block* b, size_t p) const {
    const size_t each = a_.padded_d / 16 * b->value_stride;
    return kJoinPages && D::kUnitTokens == 2 ? values_ + p / 2 * each + p % 2 * kLineBytesPerPage : values_ + p * each;
  }

  void fill_up(Block* b) const {
    if (b->pages % 2 == 1)
      copy_values<D>(nullptr, 0, a_.padded_d / 16, value_slot(b, b->pages), b->value_stride);
    for (size_t p = b->pages; p % 4 != 0; ++p) b->keys[p] = b->keys[p - 1];
  }

  const Attend& a_;
  size_t padded_keys_;
  uint8_t* keys_;
  uint8_t* values_;
};

}  // namespace ernie::ERNIE_VARIANT
