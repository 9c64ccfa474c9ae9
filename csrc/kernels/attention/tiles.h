// The two products of attention in bfloat16 with AMX: rows by 32 dimensions or tokens times 32 by 16. Tiles 0 to 3 add
// up, 4 and 5 hold rows, 6 and 7 (and 5 with one tile of rows) keys or values.
#pragma once

#include "kernels/attention/dots.h"

namespace ernie::ERNIE_VARIANT {

inline constexpr size_t kOperandBytes = 1024;

static inline const TileShapes& attention_tiles() {
  static constexpr TileShapes kShapes = [] {
    TileShapes shapes;
    for (int tile = 0; tile < 8; ++tile) shapes.set(tile, 16, 64);
    return shapes;
  }();
  return kShapes;
}

// Two tiles of rows times two columns of tiles.
static inline void dot_two_by_two(const uint8_t* rows, size_t row_stride, size_t row_step, const uint8_t* first,
                                  const uint8_t* second, size_t step, size_t count) {
  tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
  for (size_t k = 0; k < count; ++k) {
    tile_load<6>(first + k * step, 64);
    tile_load<4>(rows + k * row_step, row_stride);
    tile_dot_bf16<0, 4, 6>();
    tile_load<7>(second + k * step, 64);
    tile_dot_bf16<1, 4, 7>();
    tile_load<5>(rows + k * row_step + 16 * row_stride, row_stride);
    tile_dot_bf16<2, 5, 6>();
    tile_dot_bf16<3, 5, 7>();
  }
}

// One tile of rows times C columns of tiles, 1 to 4.
template <int C>
static inline void dot_one_by(const uint8_t* rows, size_t row_stride, size_t row_step, const uint8_t* const* columns,
                              size_t step, size_t count) {
  tile_zero<0>();
  if constexpr (C > 1) tile_zero<1>();
  if constexpr (C > 2) tile_zero<2>(), tile_zero<3>();
  for (size_t k = 0; k < count; ++k) {
    tile_load<4>(rows + k * row_step, row_stride);
    tile_load<5>(columns[0] + k * step, 64);
    tile_dot_bf16<0, 4, 5>();
    if constexpr (C > 1) {
      tile_load<6>(columns[1] + k * step, 64);
      tile_dot_bf16<1, 4, 6>();
    }
    if constexpr (C > 2) {
      tile_load<7>(columns[2] + k * step, 64);
      tile_dot_bf16<2, 4, 7>();
      tile_load<5>(columns[3] + k * step, 64);
      tile_dot_bf16<3, 4, 5>();
    }
  }
}

template <>
inline void score_rows<DotBf16>(const Attend& a, const Block& b, size_t first_row, size_t rows, size_t pages, float* scores, Ahead*) {
  const uint8_t* q = a.q + first_row * a.query_bytes;
  const size_t count = (a.d + 31) / 32;
  if (rows > 16) {
    for (size_t p = 0; p < pages; p += 2) {
      dot_two_by_two(q, a.query_bytes, 64, b.keys[p], b.keys[p + 1], kOperandBytes, count);
      float* to = scores + p * kPageScores;
      tile_store<0>(to, 64);
      tile_store<1>(to + kPageScores, 64);
      tile_store<2>(to + 256, 64);
      tile_store<3>(to + kPageScores + 256, 64);
    }
    return;
  }
  for (size_t p = 0; p < pages; p += 4) {
    dot_one_by<4>(q, a.query_bytes, 64, b.keys + p, kOperandBytes, count);
    float* to = scores + p * kPageScores;
    tile_store<0>(to, 64);
    tile_store<1>(to + kPageScores, 64);
    tile_store<2>(to + 2 * kPageScores, 64);
    tile_store<3>(to + 3 * kPageScores, 64);
  }
}

template <>
inline void weigh_values<DotBf16>(const Attend& a, const Block& b, size_t rows, size_t pages, const uint16_t* weights,
                                  float* sums, Ahead*) {
  const uint8_t* from = reinterpret_cast<const uint8_t*>(weights);
  const size_t blocks = a.padded_d / 16;
  const size_t step = blocks * kOperandBytes;  // from pair of pages to pair of pages
  const size_t row_step = kAttentionTile * 64;
  const size_t stride = a.padded_d * sizeof(float);
  const size_t count = (pages + 1) / 2;
  size_t j = 0;
  if (rows > 16) {
    for (; j + 2 <= blocks; j += 2) {
      const uint8_t* column = b.values[0] + j * kOperandBytes;
      dot_two_by_two(from, 64, row_step, column, column + kOperandBytes, step, count);
      float* to = sums + j * 16;
      tile_store<0>(to, stride);
      tile_store<1>(to + 16, stride);
      tile_store<2>(to + 16 * a.padded_d, stride);
      tile_store<3>(to + 16 * a.padded_d + 16, stride);
    }
  }
  for (size_t first = 0; first < rows; first += 16) {
    in_pieces<4>(j, blocks, [&]<int C>(size_t at) {
      const uint8_t* columns[C];
      for (int c = 0; c < C; ++c) columns[c] = b.values[0] + (at + static_cast<size_t>(c)) * kOperandBytes;
      dot_one_by<C>(from + first * 64, 64, row_step, columns, step, count);
      float* to = sums + first * a.padded_d + at * 16;
      tile_store<0>(to, stride);
      if constexpr (C > 1) tile_store<1>(to + 16, stride);
      if constexpr (C > 2) tile_store<2>(to + 32, stride), tile_store<3>(to + 48, stride);
    });
  }
}

}  // namespace ernie::ERNIE_VARIANT
