#pragma once

#include "kernels/attention/block.h"

namespace ernie::ERNIE_VARIANT {

// Rows and lines that one tile of registers takes.
#if defined(__AVX512F__)
inline constexpr int kDotRows = 4, kDotLines = 4;
#elif defined(__AVX2__)
inline constexpr int kDotRows = 4, kDotLines = 1;
#else
inline constexpr int kDotRows = 2, kDotLines = 1;
#endif

// body.operator()<N>(at) for pieces of `count`: as many of N as there are, then of N / 2, ... 1.
template <int N, typename Body>
static inline void in_pieces(size_t at, size_t count, const Body& body) {
  for (; at + N <= count; at += N) body.template operator()<N>(at);
  if constexpr (N > 1) in_pieces<N / 2>(at, count, body);
}

// acc[r][c] += units of row r times lines of column c, one after the other.
template <typename D, int R, int C>
static inline void dot_tile(const uint8_t* rows, size_t row_stride, const uint8_t* const* columns, size_t count,
                            F16 (&acc)[R][C]) {
  for (size_t i = 0; i < count; ++i) {
    typename D::Line line[C];
    for (int c = 0; c < C; ++c) line[c] = D::line(columns[c] + i * 64);
    for (int r = 0; r < R; ++r) {
      const typename D::Unit unit = D::unit(rows + static_cast<size_t>(r) * row_stride + i * 4);
      for (int c = 0; c < C; ++c) acc[r][c] = D::dot(acc[r][c], line[c], unit);
    }
  }
}

template <int R, int C>
static inline void clear(F16 (&acc)[R][C]) {
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) acc[r][c] = f_zero();
}

// Scores of some rows with the first `pages` of a block.
template <typename D>
static inline void score_rows(const Attend& a, const Block& b, size_t first_row, size_t rows, size_t pages, float* scores, Ahead* ahead) {
  const uint8_t* q = a.q + first_row * a.query_bytes;
  const size_t units = (a.d + D::kUnitTokens - 1) / D::kUnitTokens;
  in_pieces<kDotLines>(0, pages, [&]<int C>(size_t page) {
    in_pieces<kDotRows>(0, rows, [&]<int R>(size_t row) {
      F16 acc[R][C];
      clear(acc);
      ahead->lines(128);
      dot_tile<D, R, C>(q + row * a.query_bytes, a.query_bytes, b.keys + page, units, acc);
      for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c)
          f_store(scores + (page + static_cast<size_t>(c)) * kPageScores + (row + static_cast<size_t>(r)) * kPageTokens, acc[r][c]);
    });
  });
}

// Weighted sums of values, [row][padded_d].
template <typename D>
static inline void weigh_values(const Attend& a, const Block& b, size_t rows, size_t pages,
                                const typename D::Weight* weights, float* sums, Ahead* ahead) {
  constexpr size_t kUnits = kPageTokens / D::kUnitTokens;
  constexpr size_t kRowBytes = 64;  // one page of float32, two of bfloat16
  in_pieces<kDotLines>(0, a.padded_d / 16, [&]<int C>(size_t j) {
    in_pieces<kDotRows>(0, rows, [&]<int R>(size_t row) {
      F16 acc[R][C];
      clear(acc);
      for (size_t p = 0; p < pages; ++p) {
        const uint8_t* columns[C];
        for (int c = 0; c < C; ++c) columns[c] = b.values[p] + (j + static_cast<size_t>(c)) * b.value_stride;
        const size_t unit = p * kUnits;  // of the row, 16 to a line of weights
        const uint8_t* from = reinterpret_cast<const uint8_t*>(weights) +
                              (unit / 16 * kAttentionTile + row) * kRowBytes + unit % 16 * 4;
        ahead->lines(16);
        dot_tile<D, R, C>(from, kRowBytes, columns, kUnits, acc);
      }
      for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c)
          f_store(sums + (row + static_cast<size_t>(r)) * a.padded_d + (j + static_cast<size_t>(c)) * 16, acc[r][c]);
    });
  });
}

}  // namespace ernie::ERNIE_VARIANT
