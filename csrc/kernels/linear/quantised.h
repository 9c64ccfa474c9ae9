// Tiles of quantised matrices: int8 for any number of rows; int4 and nested ones as they lie for few rows, expanded to
// int8 for many.
#pragma once

#include <cstring>

#include "kernels/linear/ahead.h"
#include "kernels/linear/linear.h"

namespace ernie::ERNIE_VARIANT {

// What all quantised tiles begin with: the exact columns.
template <int P, int M>
static inline void add_exact(const Matrix& w, const uint8_t* panel, const Rows& x, size_t row, F16 (&total)[P][M]) {
  for (int p = 0; p < P; ++p)
    for (int m = 0; m < M; ++m) total[p][m] = f_zero();
  const float* values = x.exact + row * kMaxExact;
  for (size_t e = 0; e < w.exact_count; e += 2) {
    const uint8_t* line = panel + e / 2 * kLineBytes;
    for (int p = 0; p < P; ++p) {
      const F16 first = f_load_first(line + p * w.panel_bytes);
      const F16 second = f_load_second(line + p * w.panel_bytes);
      for (int m = 0; m < M; ++m) {
        total[p][m] = f_fma(first, f_set1(values[m * kMaxExact + e]), total[p][m]);
        total[p][m] = f_fma(second, f_set1(values[m * kMaxExact + e + 1]), total[p][m]);
      }
    }
  }
}

// What a tile has added up so far: `part` in the scale group that it is in, `total` before it.
template <int P, int M>
struct Sums {
  F16 total[P][M], part[P][M];
};

// Walks over the groups of a matrix's activations and the scales of its weights.
class ScaleWalk {
 public:
  ScaleWalk(const Matrix& w, const uint8_t* panel) : w_(w), scales_(panel + w.scales_at), each_(w.scale_group / w.group), left_(each_) {}

  // Adds group g's integer sums, scaled.
  template <int P, int M>
  inline __attribute__((always_inline)) void add(size_t g, const Rows& x, size_t row, const I16 (&acc)[P][M], Sums<P, M>& sums) {
    const float* scales = x.scales + row * x.groups + g;
    for (int m = 0; m < M; ++m) {
      const F16 scale = f_set1(scales[m * x.groups]);
      for (int p = 0; p < P; ++p) sums.part[p][m] = f_fma(i_to_float(acc[p][m]), scale, sums.part[p][m]);
    }
    if (--left_ == 0 || g + 1 == x.groups) fold(sums);
  }

 private:
  template <int P, int M>
  inline __attribute__((always_inline)) void fold(Sums<P, M>& sums) {
    for (int p = 0; p < P; ++p) {
      const F16 scale = f_load_bf16(reinterpret_cast<const uint16_t*>(scales_ + p * w_.panel_bytes));
      for (int m = 0; m < M; ++m) {
        sums.total[p][m] = f_fma(sums.part[p][m], scale, sums.total[p][m]);
        sums.part[p][m] = f_zero();
      }
    }
    scales_ += kPanelRows * sizeof(uint16_t);
    left_ = each_;
  }

  const Matrix& w_;
  const uint8_t* scales_;
  size_t each_, left_;
};

template <int P, int M>
static inline void begin_sums(const Matrix& w, const uint8_t* panel, const Rows& x, size_t row, Sums<P, M>& sums) {
  add_exact(w, panel, x, row, sums.total);
  for (int p = 0; p < P; ++p)
    for (int m = 0; m < M; ++m) sums.part[p][m] = f_zero();
}

template <int P, int M>
static inline void store_tile(const F16 (&total)[P][M], float* out, size_t stride) {
  for (int m = 0; m < M; ++m)
    for (int p = 0; p < P; ++p) f_store(out + m * stride + p * kPanelRows, total[p][m]);
}

// What 16 columns of a panel take: bytes of its weights, and of the lower plane.
template <Precision kForm>
inline constexpr size_t kWeightStep = is_nested(kForm) ? 2 * kLineBytes : 4 * kLineBytes;
template <Precision kForm>
inline constexpr size_t kLowStep = kForm == Precision::nested8 ? 2 * kLineBytes : kLineBytes;

// Less than the code + 128 by this much: what the products with it lack is in the sums that they begin with.
template <Precision kForm>
inline constexpr int kBelow = kForm == Precision::nested6 ? 96 : 0;

// The line of columns 4q..4q+3 of 16, a byte for each code, less kBelow.
template <Precision kForm, int q>
static inline LineI8 load_wide(const uint8_t* weights, const uint8_t* low) {
  if constexpr (kForm == Precision::nested8)
    return join_line<4, q>(weights + q / 2 * kLineBytes, low + q / 2 * kLineBytes);
  else if constexpr (kForm == Precision::nested6)
    return join_line<2, q>(weights + q / 2 * kLineBytes, low);
  else
    return load_line_i8(weights + q * kLineBytes);
}

// body.operator()<q>() for the four lines of 16 columns.
template <typename Body>
static inline __attribute__((always_inline)) void for_quads(const Body& body) {
  body.template operator()<0>();
  body.template operator()<1>();
  body.template operator()<2>();
  body.template operator()<3>();
}

// int8, or what is as good as int8 when it is read.
template <Precision kForm>
struct WideTile {
  template <int P, int M>
  static inline void run(const Matrix& w, const Rows& x, size_t row, size_t panel, float* out, size_t stride, PanelsAhead& ahead) {
    const uint8_t* base = w.data + panel * w.panel_bytes;
    const uint8_t* weights = base + w.weights_at;
    const uint8_t* low = is_nested(kForm) ? w.low + panel * w.low_bytes : weights;  // not read where there is none
    const int8_t* xp = reinterpret_cast<const int8_t*>(x.data + row * x.stride);
    const int32_t* offsets = x.offsets + row * x.groups;
    Sums<P, M> sums;
    begin_sums(w, base, x, row, sums);
    ScaleWalk scales(w, base);
    for (size_t g = 0; g < x.groups; ++g) {
      I16 acc[P][M];
      for (int m = 0; m < M; ++m) {
        const int32_t offset = offsets[m * x.groups + g];
        for (int p = 0; p < P; ++p) acc[p][m] = i_set1(kBelow<kForm> == 0 ? offset : offset / 128 * (128 - kBelow<kForm>));
      }
      for (size_t k = 0; k < w.group_cols(g); k += 16) {
        ahead.step();
        for_quads([&]<int q>() {
          LineI8 line[P];
          for (int p = 0; p < P; ++p) line[p] = load_wide<kForm, q>(weights + p * w.panel_bytes, low + p * w.low_bytes);
          for (int m = 0; m < M; ++m) {
            const Quad a = load_quad(xp + m * x.stride + 4 * q);
            for (int p = 0; p < P; ++p) acc[p][m] = dot_i8(acc[p][m], line[p], a);
          }
        });
        xp += 16;
        weights += kWeightStep<kForm>;
        low += kLowStep<kForm>;
      }
      scales.add(g, x, row, acc, sums);
    }
    store_tile(sums.total, out, stride);
  }
};

// Sixteen columns of int4 against M rows: the sums of nibble * activation, less 8 times the activations.
template <int P, int M>
static inline void dot_sub(const uint8_t* weights, size_t panel_bytes, const int8_t* const (&xp)[M], I16 (&acc)[P][M]) {
  for (size_t k = 0; k < kSubColumns / 8; ++k)
    for (int p = 0; p < P; ++p) {
      const LineI4 line = load_line_i4(weights + p * panel_bytes + k * kLineBytes);
      for (int m = 0; m < M; ++m) {
        acc[p][m] = dot_i8(acc[p][m], line.low, load_quad(xp[m] + 8 * k));
        acc[p][m] = dot_i8(acc[p][m], line.high, load_quad(xp[m] + 8 * k + 4));
      }
    }
}

struct Int4Tile {
  template <int P, int M>
  static inline void run(const Matrix& w, const Rows& x, size_t row, size_t panel, float* out, size_t stride, PanelsAhead& ahead) {
    const uint8_t* base = w.data + panel * w.panel_bytes;
    const uint8_t* weights = base + w.weights_at;
    const int8_t* xp[M];
    Sums<P, M> sums;
    for (int m = 0; m < M; ++m) xp[m] = reinterpret_cast<const int8_t*>(x.data + (row + m) * x.stride);
    begin_sums(w, base, x, row, sums);
    ScaleWalk scales(w, base);
    size_t sub = 0;
    for (size_t g = 0; g < x.groups; ++g) {
      I16 acc[P][M];
      for (int p = 0; p < P; ++p)
        for (int m = 0; m < M; ++m) acc[p][m] = i_set1(0);
      const size_t last = sub + w.group_cols(g) / kSubColumns;
      for (; sub < last; ++sub) {
        ahead.step();
        I16 part[P][M];
        for (int m = 0; m < M; ++m)
          for (int p = 0; p < P; ++p) part[p][m] = i_set1(x.fine[(row + m) * x.fine_stride + sub]);
        dot_sub<P, M>(weights, w.panel_bytes, xp, part);
        for (int p = 0; p < P; ++p) {
          const uint8_t* factors = base + p * w.panel_bytes + w.subs_at + sub / 8 * kLineBytes;
          const I16 factor = i_field(i_load(factors), static_cast<int>(sub % 8 * 4), 15);
          for (int m = 0; m < M; ++m) acc[p][m] = i_add_short(acc[p][m], part[p][m], factor);
        }
        weights += kSubColumns / 8 * kLineBytes;
        for (int m = 0; m < M; ++m) xp[m] += kSubColumns;
      }
      scales.add(g, x, row, acc, sums);
    }
    store_tile(sums.total, out, stride);
  }
};

static inline void expand_int4_panel(const Matrix& w, const uint8_t* from, uint8_t* to) {
  const uint8_t* nibbles = from + w.weights_at;
  for (size_t sub = 0; sub < w.cols / kSubColumns; ++sub) {
    const I16 factor = i_field(i_load(from + w.subs_at + sub / 8 * kLineBytes), static_cast<int>(sub % 8 * 4), 15);
    for (size_t k = 0; k < kSubColumns / 8; ++k, nibbles += kLineBytes, to += 2 * kLineBytes) {
      expand_line(nibbles, 0, factor, to);
      expand_line(nibbles, 4, factor, to + kLineBytes);
    }
  }
}

template <Precision kForm>
static inline void expand_nested_panel(const Matrix& w, const uint8_t* weights, const uint8_t* low, uint8_t* to) {
  for (size_t k = 0; k < w.cols; k += 16, weights += kWeightStep<kForm>, low += kLowStep<kForm>) {
    for_quads([&]<int q>() { store_line(to + q * kLineBytes, load_wide<kForm, q>(weights, low), kBelow<kForm>); });
    to += 4 * kLineBytes;
  }
}

// The int8 lines of one panel.
static inline void expand_panel(const Matrix& w, size_t panel, uint8_t* to) {
  const uint8_t* from = w.data + panel * w.panel_bytes;
  const uint8_t* low = w.low + panel * w.low_bytes;
  if (w.precision == Precision::int4) return expand_int4_panel(w, from, to);
  if (w.precision == Precision::nested8) return expand_nested_panel<Precision::nested8>(w, from + w.weights_at, low, to);
  expand_nested_panel<Precision::nested6>(w, from + w.weights_at, low, to);
}

// The int8 matrix of `panels` panels from `panel` on, written to `scratch`.
static Matrix expand(const Matrix& w, size_t panel, size_t panels, uint8_t* scratch) {
  Matrix wide = w;
  wide.precision = Precision::int8;
  wide.rows = panels * kPanelRows;
  wide.weights_at = w.subs_at;  // no factors
  wide.panel_bytes = wide.weights_at + w.cols / 4 * kLineBytes;
  wide.low_bytes = 0;
  wide.set_data(scratch);
  for (size_t p = 0; p < panels; ++p) {
    uint8_t* to = scratch + p * wide.panel_bytes;
    std::memcpy(to, w.data + (panel + p) * w.panel_bytes, wide.weights_at);
    expand_panel(w, panel + p, to + wide.weights_at);
  }
  return wide;
}

}  // namespace ernie::ERNIE_VARIANT
