// AMX tile registers. A tile is up to 16 rows of 64 bytes; a product adds to C [rows][16] of 32-bit lanes
//   C[m][n] += sum over k of A[m][k] * B[k / q][q * n + k % q],   q = 4 for bytes, 2 for bfloat16,
// so that a line of packed weights (linear.h) is a row of B as it lies.
//
// Not the compiler's intrinsics: those of GCC 12 do not tell it that a load reads memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace ernie::ERNIE_VARIANT {

struct alignas(64) TileShapes {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  constexpr void set(int tile, size_t tile_rows, size_t bytes) {
    rows[tile] = static_cast<uint8_t>(tile_rows);
    row_bytes[tile] = static_cast<uint16_t>(bytes);
  }
};

// Tiles of these shapes, all zero, for as long as the object lives. Outside, the tile state is empty: the system then
// neither saves it when it switches threads nor keeps the processor's deeper sleep from it.
class Tiles {
 public:
  explicit Tiles(const TileShapes& shapes) { reshape(shapes); }
  ~Tiles() { asm volatile("tilerelease"); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  // Tiles are zero afterwards.
  static void reshape(const TileShapes& shapes) { asm volatile("ldtilecfg %0" : : "m"(shapes)); }
};

template <int T>
static inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(T));
}
template <int T>
static inline void tile_load(const void* from, size_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(T) : "memory");
}
template <int T>
static inline void tile_store(void* to, size_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(T) : "memory");
}
// Signed bytes, exact.
template <int C, int A, int B>
static inline void tile_dot_s8s8() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}
// bfloat16; for each pair of k the even and the odd products are summed along k, then both are added to C. Denormals
// are zero.
template <int C, int A, int B>
static inline void tile_dot_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

}  // namespace ernie::ERNIE_VARIANT
