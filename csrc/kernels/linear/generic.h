// Tiles of kTilePanels x kTileRows accumulators stay in registers; every element sums along K in the same order,
// whatever the tile. Quantised tiles have a float beside each integer sum. Both stay in registers while tiles are half as
// large: a store takes the place of two products on the processors that this was measured on (Zen 5).
#pragma once

#include "kernels/linear/ahead.h"
#include "kernels/linear/bounds.h"
#include "kernels/linear/linear.h"
#include "kernels/linear/nearest.h"
#include "kernels/linear/prepare.h"
#include "kernels/linear/quantised.h"
#include "kernels/linear/row.h"
#if defined(__AMX_TILE__)
#include "kernels/linear/amx.h"
#endif

namespace ernie::ERNIE_VARIANT {

struct Fp32Tile {
  template <int P, int M>
  static inline void run(const Matrix& w, const Rows& x, size_t row, size_t panel, float* out, size_t stride, PanelsAhead& ahead) {
    const uint8_t* wp = w.data + panel * w.panel_bytes;
    const float* xp[M];
    F16 acc[P][M];
    for (int m = 0; m < M; ++m) xp[m] = reinterpret_cast<const float*>(x.data + (row + m) * x.stride);
    for (int p = 0; p < P; ++p)
      for (int m = 0; m < M; ++m) acc[p][m] = f_zero();
    for (size_t k = 0; k < w.cols; ++k) {
      if (k % 16 == 0) ahead.step();
      F16 line[P];
      for (int p = 0; p < P; ++p) line[p] = f_load(reinterpret_cast<const float*>(wp + p * w.panel_bytes + k * kLineBytes));
      for (int m = 0; m < M; ++m) {
        const F16 a = f_set1(xp[m][k]);
        for (int p = 0; p < P; ++p) acc[p][m] = f_fma(line[p], a, acc[p][m]);
      }
    }
    for (int m = 0; m < M; ++m)
      for (int p = 0; p < P; ++p) f_store(out + m * stride + p * kPanelRows, acc[p][m]);
  }
};

struct Bf16Tile {
  template <int P, int M>
  static inline void run(const Matrix& w, const Rows& x, size_t row, size_t panel, float* out, size_t stride, PanelsAhead& ahead) {
    const uint8_t* wp = w.data + panel * w.panel_bytes;
    const uint16_t* xp[M];
    F16 acc[P][M];
    for (int m = 0; m < M; ++m) xp[m] = reinterpret_cast<const uint16_t*>(x.data + (row + m) * x.stride);
    for (int p = 0; p < P; ++p)
      for (int m = 0; m < M; ++m) acc[p][m] = f_zero();
    for (size_t k = 0; k < w.cols / 2; ++k) {
      if (k % 8 == 0) ahead.step();
      LineBf16 line[P];
      for (int p = 0; p < P; ++p) line[p] = load_line_bf16(wp + p * w.panel_bytes + k * kLineBytes);
      for (int m = 0; m < M; ++m) {
        const PairBf16 a = load_pair_bf16(xp[m] + 2 * k);
        for (int p = 0; p < P; ++p) acc[p][m] = dot_bf16(acc[p][m], line[p], a);
      }
    }
    for (int m = 0; m < M; ++m)
      for (int p = 0; p < P; ++p) f_store(out + m * stride + p * kPanelRows, acc[p][m]);
  }
};

template <typename Tile, int P, int M>
static void call_tile(const Matrix& w, const Rows& x, size_t row, size_t panel, float* out, size_t stride, PanelsAhead& ahead) {
  Tile::template run<P, M>(w, x, row, panel, out, stride, ahead);
}

// Runs the tile of exactly `count` rows, 1 to M.
template <typename Tile, int P, int M>
static inline void run_rows(const Matrix& w, const Rows& x, size_t row, size_t count, size_t panel, float* out,
                            size_t stride, PanelsAhead& ahead) {
  if constexpr (M > 1) {
    if (count < M) return run_rows<Tile, P, M - 1>(w, x, row, count, panel, out, stride, ahead);
  }
  call_tile<Tile, P, M>(w, x, row, panel, out, stride, ahead);
}

// Any number of rows in tiles of M.
template <typename Tile, int P, int M>
static inline void run_panels(const Matrix& w, const Rows& x, size_t row, size_t count, size_t panel, float* out,
                              size_t stride, PanelsAhead ahead) {
  for (size_t m = 0; m < count; m += M) {
    const size_t left = count - m;
    run_rows<Tile, P, M>(w, x, row + m, left < M ? left : M, panel, out + m * stride, stride, ahead);
  }
}

static inline size_t tiles_of(size_t count) { return (count + kTileRows - 1) / kTileRows; }

template <typename Tile, int P, int M>
static void run_tiles_by(const Matrix& w, const Rows& x, size_t row, size_t count, size_t panel, size_t panels, Next next,
                         float* out, size_t stride) {
  size_t p = 0;
  for (; p + P <= panels; p += P) {
    const Next then = p + P < panels ? Next(panel + p + P) : next;
    run_panels<Tile, P, M>(w, x, row, count, panel + p, out + p * kPanelRows, stride,
                           ahead_of(w, count, tiles_of(count), then, P));
  }
  for (; P > 1 && p < panels; ++p)
    run_panels<Tile, 1, M>(w, x, row, count, panel + p, out + p * kPanelRows, stride, PanelsAhead());
}

template <typename Tile>
static void run_tiles(const Matrix& w, const Rows& x, size_t row, size_t count, size_t panel, size_t panels, Next next,
                      float* out, size_t stride) {
  run_tiles_by<Tile, kTilePanels, kTileRows>(w, x, row, count, panel, panels, next, out, stride);
}

// Panels of a quantised tile with many rows. Up to half of kTileRows, kTilePanels have room.
inline constexpr int kWidePanels = kTilePanels > 1 ? kTilePanels / 2 : 1;

template <typename Tile>
static void run_quantised(const Matrix& w, const Rows& x, size_t row, size_t count, size_t panel, size_t panels, Next next,
                          float* out, size_t stride) {
  if (count > kTileRows / 2)
    return run_tiles_by<Tile, kWidePanels, kTileRows>(w, x, row, count, panel, panels, next, out, stride);
  run_tiles_by<Tile, kTilePanels, kTileRows / 2>(w, x, row, count, panel, panels, next, out, stride);
}

using Int8Tile = WideTile<Precision::int8>;

// One row waits for memory, and what it waits for longest is the first panels of a task, which nobody has asked for: so it
// takes them one by one.
template <typename Tile>
static void run_row(const Matrix& w, const Rows& x, size_t row, size_t panel, size_t panels, Next next, float* out,
                    size_t stride) {
  for (size_t p = 0; p < panels; ++p) {
    const PanelsAhead ahead = ahead_of(w, 1, 1, p + 1 < panels ? Next(panel + p + 1) : next, 1);
    run_panels<Tile, 1, 1>(w, x, row, 1, panel + p, out + p * kPanelRows, stride, ahead);
  }
}

// Panels are expanded once for all rows where there are more of them than kDirect tiles take; below, expanding costs more
// than taking nibbles apart in every tile.
template <typename Tile, int kDirect>
static void run_packed(const Matrix& w, const Rows& x, size_t row, size_t count, size_t panel, size_t panels, Next next,
                       float* out, size_t stride, uint8_t* scratch) {
  if (count == 1) return run_row<Tile>(w, x, row, panel, panels, next, out, stride);
  if (count <= kDirect * kTileRows) return run_quantised<Tile>(w, x, row, count, panel, panels, next, out, stride);
  for (size_t p = 0; p < panels; p += kWidePanels) {
    const size_t some = panels - p < kWidePanels ? panels - p : kWidePanels;
    const Matrix wide = expand(w, panel + p, some, scratch);
    const PanelsAhead ahead = ahead_of(w, count, tiles_of(count), p + some < panels ? Next(panel + p + some) : next, kWidePanels);
    float* to = out + p * kPanelRows;
    if (some == kWidePanels) {
      run_panels<Int8Tile, kWidePanels, kTileRows>(wide, x, row, count, 0, to, stride, ahead);
    } else {
      run_panels<Int8Tile, 1, kTileRows>(wide, x, row, count, 0, to, stride, ahead);
    }
  }
}

static void linear(const Matrix& w, const Rows& x, size_t row, size_t count, size_t panel, size_t panels, Next next,
                   float* out, size_t stride, uint8_t* scratch) {
#if defined(__AMX_TILE__)
  if (linear_amx(w, x, row, count, panel, panels, out, stride, scratch)) return;
#endif
  if (count == 1 && quantised_row(w, x, row, panel, panels, out)) return;
  switch (w.precision) {
    case Precision::fp32:
      return run_tiles<Fp32Tile>(w, x, row, count, panel, panels, next, out, stride);
    case Precision::bf16:
      return run_tiles<Bf16Tile>(w, x, row, count, panel, panels, next, out, stride);
    case Precision::int8:
      return run_quantised<Int8Tile>(w, x, row, count, panel, panels, next, out, stride);
    case Precision::int4:
      return run_packed<Int4Tile, 2>(w, x, row, count, panel, panels, next, out, stride, scratch);
    case Precision::nested8:
      return run_packed<WideTile<Precision::nested8>, 8>(w, x, row, count, panel, panels, next, out, stride, scratch);
    case Precision::nested6:
      return run_packed<WideTile<Precision::nested6>, 4>(w, x, row, count, panel, panels, next, out, stride, scratch);
  }
}

}  // namespace ernie::ERNIE_VARIANT
