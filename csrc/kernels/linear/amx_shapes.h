// What the matrix kernels of either precision use the eight tile registers for.
#pragma once

#include "kernels/linear/linear.h"

namespace ernie::ERNIE_VARIANT {

inline constexpr size_t kTileBytes = 64;  // of K in one tile
inline constexpr size_t kAmxRows = 16;

// Tiles 0 to 3 are sums, [activation tile][panel]; 4 and 5 activations, 6 and 7 weights.
static inline TileShapes amx_shapes(size_t first_rows, size_t second_rows) {
  TileShapes shapes;
  for (int panel = 0; panel < 2; ++panel) {
    shapes.set(panel, first_rows, kLineBytes);
    shapes.set(2 + panel, second_rows, kLineBytes);
    shapes.set(6 + panel, kTileBytes / 4, kLineBytes);
  }
  shapes.set(4, first_rows, kTileBytes);
  shapes.set(5, second_rows, kTileBytes);
  return shapes;
}

}  // namespace ernie::ERNIE_VARIANT
