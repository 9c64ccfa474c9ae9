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

// Brings lines that are multiplied next into the nearest cache, in equal parts, `steps` of them: pages lie apart, and the
// processor's own prefetching ends with each.
class Near {
 public:
  // `lines` lines of each of `count` pages, `offset` bytes from its beginning.
  Near(const uint8_t* const* pages, size_t count, size_t offset, size_t lines, size_t steps)
      : pages_(pages), offset_(offset), lines_(lines), left_(count * lines), each_(steps == 0 ? 0 : (left_ + steps - 1) / steps) {}
  void step() {
    for (size_t i = 0; i < each_ && left_ > 0; ++i, --left_, ++at_) {
      if (at_ == lines_) at_ = 0, ++pages_;
      __builtin_prefetch(*pages_ + offset_ + at_ * 64);
    }
  }

 private:
  const uint8_t* const* pages_;
  size_t offset_, lines_, left_, each_, at_ = 0;
};

// Scores of some rows with the first `pages` of a block.
template <typename D>
static inline void score_rows(const Attend& a, const Block& b, size_t first_row, size_t rows, size_t pages, float* scores, Ahead* ahead) {
  const uint8_t* q = a.q + first_row * a.query_bytes;
  const size_t units = (a.d + D::kUnitTokens - 1) / D::kUnitTokens;
  in_pieces<kDotLines>(0, pages, [&]<int C>(size_t page) {
    const size_t left = pages - page - C;
    Near near(b.keys + page + C, left < C ? left : C, 0, units, (rows + kDotRows - 1) / kDotRows);
    in_pieces<kDotRows>(0, rows, [&]<int R>(size_t row) {
      F16 acc[R][C];
      clear(acc);
      ahead->lines(128);
      near.step();
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
  const size_t columns = a.padded_d / 16;
  in_pieces<kDotLines>(0, columns, [&]<int C>(size_t j) {
    // The next values; after the last, the keys that the next rows begin with.
    const size_t left = columns - j - C;
    const size_t steps = (rows + kDotRows - 1) / kDotRows * pages;
    Near near = left > 0 ? Near(b.values, pages, (j + C) * b.value_stride, (left < C ? left : C) * kUnits, steps)
                         : Near(b.keys, pages < kDotLines ? pages : kDotLines, 0, (a.d + D::kUnitTokens - 1) / D::kUnitTokens, steps);
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
        near.step();
        dot_tile<D, R, C>(from, kRowBytes, columns, kUnits, acc);
      }
      for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c)
          f_store(sums + (row + static_cast<size_t>(r)) * a.padded_d + (j + static_cast<size_t>(c)) * 16, acc[r][c]);
    });
  });
}

}  // namespace ernie::ERNIE_VARIANT
