// One row by an int8 or int4 matrix: what decoding one sequence does. It waits for memory, and memory gives most when each thread
// reads one stream that it asks for ahead (ahead.h): four panels side by side are four streams of a few kilobytes each. By itself a
// panel is one sum that waits for its last product, so here are several, which are of integers and exact in any order. And with two
// threads int4 would be held up by the instructions if every 16 columns looked up their factors and counted what is asked for: so 128
// columns, whose factors are one line, are written out.
#pragma once

#include "kernels/linear/ahead.h"
#include "kernels/linear/linear.h"
#include "kernels/linear/quantised.h"

namespace ernie::ERNIE_VARIANT {

inline constexpr size_t kBlockSubs = 8;  // factors in a line
inline constexpr size_t kBlockColumns = kBlockSubs * kSubColumns;

// Whether groups of activations divide blocks, and blocks the matrix.
static inline bool whole_blocks(const Matrix& w) {
  return w.cols % kBlockColumns == 0 && kBlockColumns % w.group == 0 && w.scale_group % w.group == 0;
}

// Adds 16 columns, number `j` of their block, times their factors.
template <int j>
static inline __attribute__((always_inline)) I16 add_sub(I16 acc, const uint8_t* weights, const int8_t* x, const int32_t* fine, I16 factors) {
  I16 part = i_set1(fine[j]);
  for (int k = 0; k < 2; ++k) {
    const LineI4 line = load_line_i4(weights + (2 * j + k) * kLineBytes);
    part = dot_i8_at(part, line.low, x + 16 * j + 8 * k);
    part = dot_i8_at(part, line.high, x + 16 * j + 8 * k + 4);
  }
  return i_add_short(acc, part, i_nibble<j>(factors));
}

// Asks for the header of the panel that lies where `base` is, kRowAhead bytes on; the loops ask for its weights.
static inline void header_ahead(const uint8_t* base, size_t bytes) {
  for (size_t at = 0; at < bytes; at += kLineBytes) __builtin_prefetch(base + kRowAhead + at, 0, 2);
}

template <int kLines>
static inline __attribute__((always_inline)) void lines_ahead(const uint8_t* weights) {
  for (int i = 0; i < kLines; ++i) __builtin_prefetch(weights + kRowAhead + i * kLineBytes, 0, 2);
}

static void int8_row(const Matrix& w, const Rows& x, size_t row, size_t panel, float* out) {
  const uint8_t* base = w.data + panel * w.panel_bytes;
  const uint8_t* weights = base + w.weights_at;
  const int8_t* xp = reinterpret_cast<const int8_t*>(x.data + row * x.stride);
  Sums<1, 1> sums;
  begin_sums(w, base, x, row, sums);
  ScaleWalk scales(w, base);
  header_ahead(base, w.weights_at);
  for (size_t g = 0; g < x.groups; ++g) {
    I16 acc[4] = {i_set1(x.offsets[row * x.groups + g]), i_set1(0), i_set1(0), i_set1(0)};
    for (size_t k = 0; k < w.group_cols(g); k += 16, xp += 16, weights += 4 * kLineBytes) {
      lines_ahead<4>(weights);
      for (int q = 0; q < 4; ++q) acc[q] = dot_i8_at(acc[q], load_line_i8(weights + q * kLineBytes), xp + 4 * q);
    }
    const I16 all[1][1] = {{i_add(i_add(acc[0], acc[1]), i_add(acc[2], acc[3]))}};
    scales.add(g, x, row, all, sums);
  }
  store_tile(sums.total, out, kPanelRows);
}

// For groups of `S` times 16 columns.
template <int S>
static void int4_row(const Matrix& w, const Rows& x, size_t row, size_t panel, float* out) {
  const uint8_t* base = w.data + panel * w.panel_bytes;
  const uint8_t* weights = base + w.weights_at;
  const uint8_t* factors = base + w.subs_at;
  const int8_t* xp = reinterpret_cast<const int8_t*>(x.data + row * x.stride);
  const int32_t* fine = x.fine + row * x.fine_stride;
  Sums<1, 1> sums;
  begin_sums(w, base, x, row, sums);
  ScaleWalk scales(w, base);
  header_ahead(base, w.weights_at);
  size_t g = 0;
  for (size_t block = 0; block < w.cols / kBlockColumns; ++block) {
    const I16 line = i_load(factors);
    I16 acc[1][1];
    const auto sub = [&]<int j>() __attribute__((always_inline)) {
      if constexpr (j % S == 0) acc[0][0] = i_set1(0);
      lines_ahead<2>(weights + 2 * j * kLineBytes);
      acc[0][0] = add_sub<j>(acc[0][0], weights, xp, fine, line);
      if constexpr (j % S == S - 1) scales.add(g++, x, row, acc, sums);
    };
    sub.template operator()<0>();
    sub.template operator()<1>();
    sub.template operator()<2>();
    sub.template operator()<3>();
    sub.template operator()<4>();
    sub.template operator()<5>();
    sub.template operator()<6>();
    sub.template operator()<7>();
    factors += kLineBytes;
    weights += 2 * kBlockSubs * kLineBytes;
    xp += kBlockColumns;
    fine += kBlockSubs;
  }
  store_tile(sums.total, out, kPanelRows);
}

// False where there is nothing better than a tile of one row.
static bool quantised_row(const Matrix& w, const Rows& x, size_t row, size_t panel, size_t panels, float* out) {
  const bool is_int4 = w.precision == Precision::int4;
  if (is_int4 ? !whole_blocks(w) : w.precision != Precision::int8) return false;
  const auto run = !is_int4        ? int8_row
                   : w.group == 16 ? int4_row<1>
                   : w.group == 32 ? int4_row<2>
                   : w.group == 64 ? int4_row<4>
                                   : int4_row<8>;
  for (size_t p = 0; p < panels; ++p) run(w, x, row, panel + p, out + p * kPanelRows);
  return true;
}

}  // namespace ernie::ERNIE_VARIANT
