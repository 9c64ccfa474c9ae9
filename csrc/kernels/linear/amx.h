// Matrices by AMX tiles: 32 rows of activations by two panels at a time, 64 bytes of K a product.
//
// int8 gives the bits of the other kernels: sums inside a group are exact, and groups are added in the same order with
// the same operations. So few rows, for which a tile is mostly empty, go to those. bfloat16 products round differently,
// so tiles multiply any number of rows.
#pragma once

#include <algorithm>

#include "kernels/linear/amx_bf16.h"
#include "kernels/linear/amx_shapes.h"
#include "kernels/linear/linear.h"
#include "kernels/linear/quantised.h"

namespace ernie::ERNIE_VARIANT {

inline constexpr size_t kAmxFewestRows = 7;

// Two panels as signed bytes, every group filled with zeros up to whole tiles.
struct AmxPanels {
  const uint8_t* header[2];
  const int8_t* weights[2];
  size_t group_bytes;  // of a panel
};

static inline void sign_line(const uint8_t* from, int8_t* to) {
  const __m512i flipped = _mm512_xor_si512(_mm512_loadu_si512(from), _mm512_set1_epi8(static_cast<char>(0x80)));
  _mm512_storeu_si512(to, flipped);
}

// int8 lines of a panel into `to`: lines of signed bytes.
static inline void sign_panel(const Matrix& w, const uint8_t* weights, size_t group_lines, int8_t* to) {
  for (size_t g = 0; g < w.groups(); ++g) {
    const size_t lines = w.group_cols(g) / 4;
    for (size_t k = 0; k < group_lines; ++k, to += kLineBytes) {
      if (k >= lines) {
        std::memset(to, 0, kLineBytes);
      } else {
        sign_line(weights + k * kLineBytes, to);
      }
    }
    weights += lines * kLineBytes;
  }
}

// Sums of one group, of `cols` columns. Tiles behind them are left out: rows of activations are only readable up to the
// next multiple of 64 bytes.
template <int Tokens, int Panels>
static inline void amx_group(const AmxPanels& w, size_t g, size_t cols, const int8_t* x, size_t stride, int32_t* sums) {
  // Loaded, not zeroed: products that follow `tilezero` were measured at half the speed.
  tile_zero<0>();
  if (Panels > 1) tile_zero<1>();
  if (Tokens > 1) tile_zero<2>();
  if (Tokens > 1 && Panels > 1) tile_zero<3>();
  for (size_t k = 0; k < cols; k += kTileBytes) {
    const size_t at = k * kPanelRows;
    tile_load<6>(w.weights[0] + g * w.group_bytes + at, kLineBytes);
    tile_load<4>(x + k, stride);
    tile_dot_s8s8<0, 4, 6>();
    if (Panels > 1) {
      tile_load<7>(w.weights[1] + g * w.group_bytes + at, kLineBytes);
      tile_dot_s8s8<1, 4, 7>();
    }
    if (Tokens > 1) {
      tile_load<5>(x + kAmxRows * stride + k, stride);
      tile_dot_s8s8<2, 5, 6>();
      if (Panels > 1) tile_dot_s8s8<3, 5, 7>();
    }
  }
  tile_store<0>(sums, 64);
  if (Panels > 1) tile_store<1>(sums + 256, 64);
  if (Tokens > 1) tile_store<2>(sums + 512, 64);
  if (Tokens > 1 && Panels > 1) tile_store<3>(sums + 768, 64);
}

// What a block has added up so far, [token][2 panels of 16]: `part` in the scale group that it is in, `total` before it.
struct AmxSums {
  alignas(64) float total[2 * kAmxRows * 2 * kPanelRows];
  alignas(64) float part[2 * kAmxRows * 2 * kPanelRows];
};

// Adds the sums of one group.
template <int Panels>
static inline void amx_rescale(size_t g, const Rows& x, size_t row, size_t rows, const int32_t* sums, float* part) {
  const float* scales = x.scales + row * x.groups + g;
#pragma GCC unroll 4
  for (size_t r = 0; r < rows; ++r, part += 2 * kPanelRows) {
    const F16 scale = f_set1(scales[r * x.groups]);
    const int32_t* sum = sums + r / kAmxRows * 512 + r % kAmxRows * 16;
    f_store(part, f_fma(i_to_float(i_load(sum)), scale, f_load(part)));
    if (Panels > 1) f_store(part + 16, f_fma(i_to_float(i_load(sum + 256)), scale, f_load(part + 16)));
  }
}

// Ends the scale group that g is the last group of.
template <int Panels>
static inline void amx_fold(const Matrix& w, const AmxPanels& panels, size_t g, size_t rows, AmxSums& sums) {
  const size_t at = w.scales_of(g);
  for (int p = 0; p < Panels; ++p) {
    const F16 scale = f_load_bf16(reinterpret_cast<const uint16_t*>(panels.header[p] + at));
    for (size_t r = 0; r < rows; ++r) {
      float* total = sums.total + (2 * r + p) * kPanelRows;
      float* part = sums.part + (2 * r + p) * kPanelRows;
      f_store(total, f_fma(f_load(part), scale, f_load(total)));
      f_store(part, f_zero());
    }
  }
}

// The exact columns of up to 32 rows, the first that is added.
template <int Panels>
static inline void amx_exact(const Matrix& w, const AmxPanels& panels, const Rows& x, size_t row, size_t rows,
                             float* totals) {
  for (size_t r = 0; r < rows; ++r, totals += 2 * kPanelRows) {
    const float* values = x.exact + (row + r) * kMaxExact;
    F16 sum[2] = {f_zero(), f_zero()};
    for (size_t e = 0; e < w.exact_count; e += 2)
      for (int p = 0; p < Panels; ++p) {
        const uint8_t* line = panels.header[p] + e / 2 * kLineBytes;
        sum[p] = f_fma(f_load_first(line), f_set1(values[e]), sum[p]);
        sum[p] = f_fma(f_load_second(line), f_set1(values[e + 1]), sum[p]);
      }
    for (int p = 0; p < Panels; ++p) f_store(totals + 16 * p, sum[p]);
  }
}

// Up to 32 rows by one or two panels. The sums of a group are taken up while the next one is being multiplied.
template <int Tokens, int Panels>
static void amx_block(const Matrix& w, const AmxPanels& panels, const Rows& x, size_t row, size_t rows, float* out,
                      size_t stride) {
  alignas(64) int32_t sums[2][4 * kAmxRows * kPanelRows];
  AmxSums all;
  const int8_t* data = reinterpret_cast<const int8_t*>(x.data + row * x.stride);
  const size_t each = w.scale_group / w.group;
  const auto take_up = [&](size_t g) {
    amx_rescale<Panels>(g, x, row, rows, sums[g % 2], all.part);
    if ((g + 1) % each == 0 || g + 1 == x.groups) amx_fold<Panels>(w, panels, g, rows, all);
  };
  std::memset(all.part, 0, rows * 2 * kPanelRows * sizeof(float));
  amx_exact<Panels>(w, panels, x, row, rows, all.total);
  amx_group<Tokens, Panels>(panels, 0, w.group_cols(0), data, x.stride, sums[0]);
  for (size_t g = 1; g < x.groups; ++g) {
    amx_group<Tokens, Panels>(panels, g, w.group_cols(g), data + g * w.group, x.stride, sums[g % 2]);
    take_up(g - 1);
  }
  take_up(x.groups - 1);
  for (size_t r = 0; r < rows; ++r)
    for (int p = 0; p < Panels; ++p) f_store(out + r * stride + p * kPanelRows, f_load(all.total + (2 * r + p) * kPanelRows));
}

template <int Panels>
static void amx_rows(const Matrix& w, const AmxPanels& panels, const Rows& x, size_t row, size_t count, float* out,
                     size_t stride) {
  size_t done = 0;
  if (count >= 2 * kAmxRows) Tiles::reshape(amx_shapes(kAmxRows, kAmxRows));
  for (; done + 2 * kAmxRows <= count; done += 2 * kAmxRows)
    amx_block<2, Panels>(w, panels, x, row + done, 2 * kAmxRows, out + done * stride, stride);
  const size_t left = count - done;
  if (left == 0) return;
  const size_t first = std::min(left, kAmxRows);
  Tiles::reshape(amx_shapes(first, left > first ? left - first : 1));
  if (left > kAmxRows) return amx_block<2, Panels>(w, panels, x, row + done, left, out + done * stride, stride);
  amx_block<1, Panels>(w, panels, x, row + done, left, out + done * stride, stride);
}

static void amx_quantised(const Matrix& w, const Rows& x, size_t row, size_t count, size_t panel, size_t panels,
                          float* out, size_t stride, uint8_t* scratch) {
  const Tiles tiles(amx_shapes(kAmxRows, kAmxRows));
  const size_t group_lines = (w.group + kTileBytes - 1) / kTileBytes * (kTileBytes / 4);
  AmxPanels two;
  two.group_bytes = group_lines * kLineBytes;
  int8_t* signed_lines = reinterpret_cast<int8_t*>(scratch);
  uint8_t* wide = scratch + 2 * w.groups() * two.group_bytes;
  for (size_t p = 0; p < panels; p += 2) {
    const size_t some = std::min<size_t>(2, panels - p);
    for (size_t i = 0; i < some; ++i) {
      int8_t* lines = signed_lines + i * w.groups() * two.group_bytes;
      const uint8_t* header = w.data + (panel + p + i) * w.panel_bytes;
      if (w.precision != Precision::int8) expand_panel(w, panel + p + i, wide);
      sign_panel(w, w.precision == Precision::int8 ? header + w.weights_at : wide, group_lines, lines);
      two.header[i] = header;
      two.weights[i] = lines;
    }
    if (some == 2) {
      amx_rows<2>(w, two, x, row, count, out + p * kPanelRows, stride);
    } else {
      amx_rows<1>(w, two, x, row, count, out + p * kPanelRows, stride);
    }
  }
}

// False where tiles are not the way to multiply this.
static bool linear_amx(const Matrix& w, const Rows& x, size_t row, size_t count, size_t panel, size_t panels, float* out,
                       size_t stride, uint8_t* scratch) {
  if (w.precision == Precision::bf16) {
    amx_bf16(w, x, row, count, panel, panels, out, stride);
    return true;
  }
  if (!is_quantised(w.precision) || count < kAmxFewestRows) return false;
  amx_quantised(w, x, row, count, panel, panels, out, stride, scratch);
  return true;
}

}  // namespace ernie::ERNIE_VARIANT
