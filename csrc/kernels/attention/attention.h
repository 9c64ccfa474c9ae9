// Causal attention of the query heads that share one key/value head, over a paged cache.
//
// Scores are powers of two: queries come multiplied by log2(e) / sqrt(d). Precision fp32 computes in float32; bf16 and
// int8 multiply bfloat16 (queries and weights are rounded to it, int8 expands to it exactly) and add up in float32; an
// int8 key's scale multiplies the score, a value's scale the weight before that is rounded.
//
// Invariance: keys are taken in blocks of kAttentionBlock at absolute positions. A block gives each row (one query head
// of one token) a shift, a sum of weights and a weighted value, and blocks are merged in order (flash attention, Dao
// et al. 2022) into a span of kAttentionSpan keys; spans are joined in order. So spans may be computed one after the
// other or in parallel, and a row's bits depend on its query and on the keys up to its position alone. The shift is the
// largest score rounded to a whole number, which makes every factor of a merge an exact power of two.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention/layout.h"

namespace ernie {

inline constexpr size_t kAttentionBlock = 256;
inline constexpr size_t kAttentionSpan = 1024;
inline constexpr size_t kAttentionTile = 32;  // most rows that are computed together

// What attention over some of the keys gave: weighted sums of values, and for each row the shift of its weights and
// their sum. Rows are tokens times heads.
struct Attended {
  float* out;           // [tokens][token_stride], the heads padded_d apart
  size_t token_stride;  // in floats
  float* shift;         // [rows]
  float* sum;           // [rows]
};

struct Attend {
  const uint8_t* const* pages;  // of the sequence, in order
  size_t head;                  // byte offset of the layer's and head's part of a page
  KvLayout layout;
  KvPrecision precision;
  size_t d;                     // head size
  size_t padded_d;              // d rounded up to 16
  size_t heads;                 // query heads that share the key/value head
  const uint8_t* q;             // [rows][query_bytes], readable for 15 rows more
  size_t query_bytes;
  size_t tokens;
  size_t first_position;        // token t sees keys 0 .. first_position + t
  size_t span;                  // the first key, a multiple of kAttentionSpan; some token sees it
  Attended to;                  // tokens that see no key of the span get the sum 0
  uint8_t* scratch;             // attend_scratch_bytes(padded_d)
};

inline constexpr size_t attend_scratch_bytes(size_t padded_d) {
  constexpr size_t pages = kAttentionBlock / kPageTokens;
  const size_t tile = kAttentionTile * (2 * kAttentionBlock + padded_d) * sizeof(float);
  const size_t keys = pages * ((padded_d + 31) / 32 * 32) * 32;  // int8 expanded
  const size_t values = pages * padded_d * 64;
  return tile + keys + values;
}

// The keys of one span.
using AttendFn = void (*)(const Attend& task);

// Adds the next span's result to that of all spans before it.
using JoinFn = void (*)(const Attended& to, const Attended& from, size_t tokens, size_t heads, size_t padded_d);

// Divides by the sums of weights.
using FinishFn = void (*)(const Attended& to, size_t tokens, size_t heads, size_t padded_d);

// One token's key or value: `padded_d` floats, zero from d on, into slot `slot` of a head's part of a page.
struct KvEntry {
  const float* from;
  uint8_t* head;
  KvLayout layout;
  KvPrecision precision;
  size_t d, padded_d, slot;
};
using StoreKvFn = void (*)(const KvEntry& entry);

// A query row in the form that attention reads: float32 or bfloat16, zero-filled up to query_bytes.
using StoreQueryFn = void (*)(const float* from, size_t padded_d, KvPrecision precision, uint8_t* to, size_t query_bytes);

}  // namespace ernie
