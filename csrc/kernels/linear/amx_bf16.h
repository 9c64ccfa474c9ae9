// bfloat16 matrices by AMX tiles: lines of packed weights are the rows of a tile as they lie. Any number of rows goes
// this way, one included, since the other kernels round in another order.
#pragma once

#include <algorithm>

#include "kernels/linear/amx_shapes.h"
#include "kernels/linear/linear.h"

namespace ernie::ERNIE_VARIANT {

// Up to 32 rows by one or two panels, all of K.
template <int Tokens, int Panels>
static inline void amx_bf16_block(const Matrix& w, const uint8_t* panel, const uint8_t* x, size_t x_stride, float* out,
                                  size_t stride) {
  tile_zero<0>();
  if (Panels > 1) tile_zero<1>();
  if (Tokens > 1) tile_zero<2>();
  if (Tokens > 1 && Panels > 1) tile_zero<3>();
  const uint8_t* second = panel + w.panel_bytes;
  for (size_t k = 0; k < w.panel_bytes; k += kPanelRows * kLineBytes, x += kTileBytes) {
    tile_load<6>(panel + k, kLineBytes);
    tile_load<4>(x, x_stride);
    tile_dot_bf16<0, 4, 6>();
    if (Panels > 1) {
      tile_load<7>(second + k, kLineBytes);
      tile_dot_bf16<1, 4, 7>();
    }
    if (Tokens > 1) {
      tile_load<5>(x + kAmxRows * x_stride, x_stride);
      tile_dot_bf16<2, 5, 6>();
      if (Panels > 1) tile_dot_bf16<3, 5, 7>();
    }
  }
  const size_t bytes = stride * sizeof(float);
  tile_store<0>(out, bytes);
  if (Panels > 1) tile_store<1>(out + kPanelRows, bytes);
  if (Tokens > 1) tile_store<2>(out + kAmxRows * stride, bytes);
  if (Tokens > 1 && Panels > 1) tile_store<3>(out + kAmxRows * stride + kPanelRows, bytes);
}

template <int Tokens>
static void amx_bf16_rows(const Matrix& w, const Rows& x, size_t row, size_t panel, size_t panels, float* out,
                          size_t stride) {
  const uint8_t* rows = x.data + row * x.stride;
  size_t p = 0;
  for (; p + 2 <= panels; p += 2)
    amx_bf16_block<Tokens, 2>(w, w.data + (panel + p) * w.panel_bytes, rows, x.stride, out + p * kPanelRows, stride);
  if (p < panels)
    amx_bf16_block<Tokens, 1>(w, w.data + (panel + p) * w.panel_bytes, rows, x.stride, out + p * kPanelRows, stride);
}

static void amx_bf16(const Matrix& w, const Rows& x, size_t row, size_t count, size_t panel, size_t panels, float* out,
                     size_t stride) {
  const Tiles tiles(amx_shapes(kAmxRows, kAmxRows));
  size_t done = 0;
  for (; done + 2 * kAmxRows <= count; done += 2 * kAmxRows)
    amx_bf16_rows<2>(w, x, row + done, panel, panels, out + done * stride, stride);
  const size_t left = count - done;
  if (left == 0) return;
  const size_t first = std::min(left, kAmxRows);
  Tiles::reshape(amx_shapes(first, left > first ? left - first : 1));
  if (left > kAmxRows) return amx_bf16_rows<2>(w, x, row + done, panel, panels, out + done * stride, stride);
  amx_bf16_rows<1>(w, x, row + done, panel, panels, out + done * stride, stride);
}

}  // namespace ernie::ERNIE_VARIANT
