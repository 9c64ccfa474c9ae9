// Where keys and values lie in a page of 16 tokens.
//
// For each layer and key/value head a page has the keys, then the values, both as 64-byte lines that the dot product
// instructions take as they lie: a line has 4 bytes of each of 16 columns, and columns are summed along the lines.
//   keys:    a column is a token; a line has one (fp32) or two (bf16) dimensions of all 16 tokens
//   values:  a column is a dimension; for each 16 dimensions, a line has one or two tokens
// Dimensions are padded to 32 for keys in bf16, so that 16 lines are a whole tile of AMX, and to 16 for values; padding
// is zero. int8 is bf16's order with one byte for each element, two lines woven into 64 bytes (see int8_offset), and
// after keys and values a scale for each token's key and one for its value, in float32.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ernie {

inline constexpr size_t kPageTokens = 16;

enum class KvPrecision { fp32, bf16, int8 };

// Byte offsets within one head's part of a page; `bytes` is its size, a multiple of 64.
struct KvLayout {
  size_t values, key_scales, value_scales, bytes;
};

inline constexpr KvLayout kv_layout(KvPrecision precision, size_t d) {
  const size_t padded = (d + 15) / 16 * 16;
  const size_t wide = (d + 31) / 32 * 32;
  switch (precision) {
    case KvPrecision::fp32:
      return {d * 64, 0, 0, (d + padded) * 64};
    case KvPrecision::bf16:
      return {wide * 32, 0, 0, (wide + padded) * 32};
    case KvPrecision::int8:
      return {wide * 16, (wide + padded) * 16, (wide + padded) * 16 + 64, (wide + padded) * 16 + 128};
  }
  return {};
}

// Bytes of a query row.
inline constexpr size_t query_bytes(KvPrecision precision, size_t d) {
  return precision == KvPrecision::fp32 ? (d + 15) / 16 * 64 : (d + 31) / 32 * 64;
}

// Where the byte for 16-bit element `word` (0 to 31) of line `line` lies: each 16 bytes hold a quarter of an even line,
// then the same quarter of the odd line after it, so that interleaving them with another byte gives both in order.
static constexpr size_t int8_offset(size_t line, size_t word) {
  return line / 2 * 64 + word / 8 * 16 + line % 2 * 8 + word % 8;
}

}  // namespace ernie
