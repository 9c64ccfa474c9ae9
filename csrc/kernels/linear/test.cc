// Every variant against double precision, on odd sizes and extreme values; packing; independence of tile and panel.
#include "tests/testing.h"

#include <algorithm>
#include <bit>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "base/bf16.h"
#include "kernels/linear/pack.h"

using namespace ernie;

namespace {

struct Case {
  size_t rows, cols, tokens, group, scale_group;
};
constexpr Case kCases[] = {{1, 2, 1, 32, 32},      {16, 16, 1, 64, 64},    {17, 30, 2, 32, 32},   {64, 64, 7, 64, 64},
                           {100, 129, 13, 48, 48}, {80, 300, 6, 128, 256}, {200, 256, 25, 256, 256},
                           {48, 200, 33, 128, 128}, {32, 96, 71, 32, 32},  {16, 64, 16, 64, 64},
                           {96, 400, 9, 32, 128},  {80, 330, 3, 64, 192},  {112, 272, 26, 16, 256},
                           {48, 256, 3, 32, 128},  {32, 384, 5, 64, 128},  {16, 128, 2, 16, 64},
                           {40, 256, 2, 128, 128}};

// Owns prepared activations and a kernel's working memory.
struct Activations {
  AlignedBuffer data, scales, offsets, fine, exact, scratch;
  Rows rows;
  Activations(const Matrix& w, size_t tokens)
      : data(tokens * prepared_bytes(w) + kLineBytes),
        scales(tokens * w.groups() * 4 + 64),
        offsets(tokens * w.groups() * 4 + 64),
        fine(tokens * w.cols / 4 + 64),
        exact(tokens * kMaxExact * 4),
        scratch(linear_scratch_bytes(w.cols)) {
    rows = {data.data(), prepared_bytes(w), reinterpret_cast<float*>(scales.data()),
            reinterpret_cast<int32_t*>(offsets.data()), reinterpret_cast<int32_t*>(fine.data()),
            reinterpret_cast<float*>(exact.data()), w.groups(), w.cols / kSubColumns};
  }
  // What the kernel multiplies by, as a number.
  double value(const Matrix& w, size_t token, size_t col) const {
    const uint8_t* row = rows.data + token * rows.stride;
    if (w.precision == Precision::fp32) return reinterpret_cast<const float*>(row)[col];
    if (w.precision == Precision::bf16) return bf16_to_float(reinterpret_cast<const uint16_t*>(row)[col]);
    for (size_t e = 0; e < w.exact_count; ++e)
      if (static_cast<size_t>(w.exact[e]) == col) return rows.exact[token * kMaxExact + e];
    return static_cast<double>(reinterpret_cast<const int8_t*>(row)[col]) * rows.scales[token * rows.groups + col / w.group];
  }
};

// The variant that packs where it does not matter which.
const Kernels& kBest = kernels_for(supported_isas().back());

PackedMatrix pack_floats(Precision precision, Groups groups, const std::vector<float>& w, size_t rows, size_t cols) {
  ThreadPool pool(2);
  const Source source{w.data(), Dtype::fp32, rows, cols, static_cast<ptrdiff_t>(cols), 1};
  return pack(precision, groups, {source}, plain_rows(rows), plain_cols(cols), kBest, pool);
}

void prepare_all(const Kernels& kernels, const Matrix& w, const std::vector<float>& x, size_t tokens, size_t cols,
                 Activations* out) {
  std::vector<float> padded(w.cols);
  for (size_t t = 0; t < tokens; ++t) {
    std::copy(x.begin() + t * cols, x.begin() + (t + 1) * cols, padded.begin());
    kernels.prepare(w, padded.data(), 0, w.cols, out->rows, t);
  }
}

void check_matrix(const Kernels& kernels, const Matrix& m, const std::vector<float>& x, size_t tokens, size_t cols) {
  Activations a(m, tokens);
  prepare_all(kernels, m, x, tokens, cols, &a);
  std::vector<float> out(tokens * m.rows, NAN);
  const auto linear = [&](size_t row, size_t count, size_t panel, size_t panels, float* to, size_t stride) {
    kernels.linear(m, a.rows, row, count, panel, panels, panel + panels, to, stride, a.scratch.data());
  };
  linear(0, tokens, 0, m.panels(), out.data(), m.rows);
  std::vector<float> row(m.cols);
  for (size_t n = 0; n < m.rows; ++n) {
    unpack_row(m, n, m.cols, row.data());
    for (size_t t = 0; t < tokens; ++t) {
      double expected = 0.0, size = 0.0;
      for (size_t k = 0; k < m.cols; ++k) {
        const double product = row[k] * a.value(m, t, k);
        expected += product;
        size += std::fabs(product);
      }
      CHECK_NEAR(out[t * m.rows + n], expected, 3e-6 * size + 1e-30);
    }
  }
  // One row, one panel at a time gives the same bits; so does every number of rows from the middle on.
  for (size_t t = 0; t < tokens; ++t)
    for (size_t p = 0; p < m.panels(); ++p) {
      float one[kPanelRows];
      linear(t, 1, p, 1, one, kPanelRows);
      CHECK(std::memcmp(one, out.data() + t * m.rows + p * kPanelRows, sizeof one) == 0);
    }
  // What is asked for ahead, of this matrix or a smaller one, changes nothing.
  Matrix other = m;
  other.rows = kPanelRows;
  for (const Next next : {Next(0), Next(m, m.panels() - 1), Next(other, 0), Next(other, 1)}) {
    std::vector<float> again(tokens * m.rows, NAN);
    kernels.linear(m, a.rows, 0, tokens, 0, m.panels(), next, again.data(), m.rows, a.scratch.data());
    CHECK(std::memcmp(again.data(), out.data(), again.size() * sizeof(float)) == 0);
  }
  std::vector<float> part(tokens * m.rows);
  for (size_t first = 0; first < tokens; first += 5) {
    const size_t count = tokens - first;
    linear(first, count, 0, m.panels(), part.data(), m.rows);
    CHECK(std::memcmp(part.data(), out.data() + first * m.rows, count * m.rows * sizeof(float)) == 0);
  }
}

void check_case(const Kernels& kernels, const Case& c, Precision precision, std::mt19937& random, float scale) {
  const auto w = normals(random, c.rows * c.cols, scale);
  const auto x = normals(random, c.tokens * c.cols, scale);
  check_matrix(kernels, pack_floats(precision, {c.group, c.scale_group}, w, c.rows, c.cols).view, x, c.tokens, c.cols);
}

constexpr Precision kAll[] = {Precision::fp32, Precision::bf16,    Precision::int8,
                              Precision::int4, Precision::nested8, Precision::nested6};

// Arrays of random codes, and the source that is made of them.
struct RandomCodes {
  std::vector<int8_t> codes;
  std::vector<uint16_t> scales, exact_weights;
  std::vector<uint8_t> subs;
  std::vector<int32_t> exact;
  Codes view;
  Source source;
  RandomCodes(std::mt19937& random, int bits, size_t rows, size_t cols, size_t group, std::vector<int32_t> exact_columns)
      : codes(rows * cols), scales(rows * div_up(cols, group)), exact_weights(rows * exact_columns.size()),
        exact(std::move(exact_columns)) {
    std::uniform_int_distribution<int> code(bits == 8 ? -127 : -(1 << (bits - 1)), (1 << (bits - 1)) - 1),
        sub(0, 15);
    for (int8_t& c : codes) c = static_cast<int8_t>(code(random));
    for (size_t r = 0; r < rows; ++r)
      for (int32_t e : exact) codes[r * cols + static_cast<size_t>(e)] = 0;
    for (uint16_t& s : scales) s = float_to_bf16(std::fabs(normals(random, 1)[0]));
    for (uint16_t& s : exact_weights) s = float_to_bf16(normals(random, 1)[0]);
    if (bits == 4) subs.resize(rows * div_up(cols, kSubColumns));
    for (uint8_t& s : subs) s = static_cast<uint8_t>(sub(random));
    view = {codes.data(), scales.data(), bits == 4 ? subs.data() : nullptr, exact.data(), exact_weights.data(), exact.size(), bits, group};
    source = {.rows = rows, .cols = cols, .codes = &view};
  }
  double value(size_t r, size_t c) const {
    for (size_t e = 0; e < exact.size(); ++e)
      if (static_cast<size_t>(exact[e]) == c) return bf16_to_float(exact_weights[r * exact.size() + e]);
    const size_t cols = source.cols;
    const double factor = subs.empty() ? 1 : subs[r * div_up(cols, kSubColumns) + c / kSubColumns];
    return bf16_to_float(scales[r * div_up(cols, view.group) + c / view.group]) * factor * codes[r * cols + c];
  }
};

// Codes that were chosen elsewhere are packed as they are; exact columns take part unrounded.
void test_codes(const Kernels& kernels) {
  std::mt19937 random(7);
  ThreadPool pool(2);
  for (int bits : {8, 6, 4})
    for (const auto& exact : {std::vector<int32_t>{}, std::vector<int32_t>{0, 17, 130, 199}}) {
      const RandomCodes made(random, bits, 40, 200, 128, exact);
      const size_t group = exact.empty() ? 128 : 32;  // of activations
      const PackedMatrix packed = pack(Precision::fp32, {group, 0}, {made.source}, plain_rows(40), plain_cols(200), kBest, pool);
      std::vector<float> row(200);
      for (size_t r = 0; r < 40; ++r) {
        unpack_row(packed.view, r, 200, row.data());
        for (size_t c = 0; c < 200; ++c) CHECK_NEAR(row[c], made.value(r, c), 1e-6 * std::fabs(made.value(r, c)));
      }
      auto x = normals(random, 23 * 200);
      for (int32_t e : exact) x[static_cast<size_t>(e)] = 1e4f;  // what exact columns are for
      check_matrix(kernels, packed.view, x, 23, 200);
    }
}

// No product is outside the bounds of its panel, whether lower bits are random or all alike.
void test_bounds(const Kernels& kernels) {
  std::mt19937 random(9);
  ThreadPool pool(2);
  const size_t rows = 70, cols = 200;
  for (int bits : {8, 6})
    for (int32_t step : {1, 4}) {
      RandomCodes made(random, bits, rows, cols, 128, {3, 150});
      for (int8_t& code : made.codes) code = static_cast<int8_t>(code / step * step);
      const Precision precision = bits == 8 ? Precision::nested8 : Precision::nested6;
      const PackedMatrix packed = pack(precision, {32, 0}, {made.source}, plain_rows(rows), plain_cols(cols), kBest, pool);
      const Matrix& w = packed.view;
      // Both margins, of lower bits with a deviation of steps / sqrt(12), with scales and activations of 1 or so.
      const float widest = 4 * 2 * kBoundSigmas * 0.29f * static_cast<float>(1 << low_bits(precision)) * std::sqrt(200.0f);
      const auto x = normals(random, 3 * cols);
      Activations a(w, 3);
      prepare_all(kernels, w, x, 3, cols, &a);
      std::vector<float> out(w.rows), lower(w.panels()), upper(w.panels()), spread(w.groups());
      for (size_t t = 0; t < 3; ++t)
        for (size_t limit : {rows, size_t{37}}) {
          kernels.linear(w, a.rows, t, 1, 0, w.panels(), 0, out.data(), w.rows, a.scratch.data());
          nested_spread(w, a.rows, t, spread.data());
          kernels.bound(w, a.rows, spread.data(), t, 0, w.panels(), limit, lower.data(), upper.data());
          for (size_t p = 0; p < w.panels(); ++p) {
            const auto begin = out.begin() + static_cast<ptrdiff_t>(p * kPanelRows);
            const size_t lanes = std::min(kPanelRows, limit - std::min(limit, p * kPanelRows));
            if (lanes == 0) {
              CHECK(std::isinf(lower[p]) && std::isinf(upper[p]));
              continue;
            }
            const float top = *std::max_element(begin, begin + static_cast<ptrdiff_t>(lanes));
            CHECK(lower[p] <= top && top <= upper[p]);
            CHECK(upper[p] - lower[p] < widest);  // bounds that are always true would be useless
          }
        }
    }
}

// A weight that is no number shows in the bounds of its panel.
void test_bounds_of_what_is_no_number(const Kernels& kernels) {
  std::mt19937 random(10);
  ThreadPool pool(1);
  RandomCodes made(random, 8, 48, 64, 64, {});
  made.scales[20] = 0x7fc0;
  const PackedMatrix packed = pack(Precision::nested8, {64, 0}, {made.source}, plain_rows(48), plain_cols(64), kBest, pool);
  Activations a(packed.view, 1);
  prepare_all(kernels, packed.view, normals(random, 64), 1, 64, &a);
  float lower[3], upper[3], spread[1];
  nested_spread(packed.view, a.rows, 0, spread);
  kernels.bound(packed.view, a.rows, spread, 0, 0, 3, 48, lower, upper);
  for (size_t p = 0; p < 3; ++p) CHECK(std::isnan(lower[p]) == (p == 1) && std::isnan(upper[p]) == (p == 1));
}

void test_codes_that_do_not_fit() {
  std::mt19937 random(8);
  ThreadPool pool(1);
  const RandomCodes a(random, 8, 16, 64, 32, {1, 2}), b(random, 8, 16, 64, 64, {1, 2}), c(random, 4, 16, 64, 32, {1, 2}),
      d(random, 8, 16, 64, 32, {1, 3}), e(random, 6, 16, 64, 32, {1, 2});
  const std::vector<float> floats(16 * 64);
  const Source plain{floats.data(), Dtype::fp32, 16, 64, 64, 1};
  std::vector<SourceRow> rows = plain_rows(16);
  for (const Source& other : {b.source, c.source, d.source, e.source, plain})
    CHECK_THROWS(pack(Precision::fp32, {32, 0}, {a.source, other}, rows, plain_cols(64), kBest, pool), std::invalid_argument);
  std::vector<int32_t> turned = plain_cols(64);
  std::swap(turned[0], turned[1]);
  CHECK_THROWS(pack(Precision::fp32, {32, 0}, {a.source}, rows, turned, kBest, pool), std::invalid_argument);
}

void test_against_double(const Kernels& kernels) {
  std::mt19937 random(1);
  for (const Case& c : kCases)
    for (Precision precision : kAll)
      for (float scale : {1.0f, 1e-6f, 1e6f}) check_case(kernels, c, precision, random, scale);
}

// The largest products that int8 can meet must not wrap: 128 columns of -127 times the largest weight.
void test_int8_extremes(const Kernels& kernels) {
  for (float sign : {1.0f, -1.0f}) {
    const std::vector<float> w(16 * 128, sign), x(128, -1.0f);
    const PackedMatrix packed = pack_floats(Precision::int8, {128, 128}, w, 16, 128);
    Activations a(packed.view, 1);
    prepare_all(kernels, packed.view, x, 1, 128, &a);
    float out[16];
    kernels.linear(packed.view, a.rows, 0, 1, 0, 1, 1, out, 16, a.scratch.data());
    for (float value : out) CHECK_NEAR(value, -128.0 * sign, 0.5);  // the scale is rounded to bfloat16
  }
}

void test_prepare_rounds_and_fills(const Kernels& kernels) {
  const PackedMatrix packed = pack_floats(Precision::int8, {64, 64}, std::vector<float>(16 * 32, 0.0f), 16, 32);
  Activations a(packed.view, 1);
  std::vector<float> x(32, 0.0f);
  x[0] = 127.0f, x[1] = 2.5f, x[2] = 3.5f, x[3] = -2.5f;
  std::memset(a.rows.data, 77, a.rows.stride);  // the row's 32 columns alone are written
  kernels.prepare(packed.view, x.data(), 0, 32, a.rows, 0);
  const auto* bytes = reinterpret_cast<const int8_t*>(a.rows.data);
  CHECK(bytes[0] == 127 && bytes[1] == 2 && bytes[2] == 4 && bytes[3] == -2);
  for (size_t i = 4; i < 32; ++i) CHECK(bytes[i] == 0);
  CHECK(a.rows.scales[0] == 1.0f && a.rows.offsets[0] == -128 * (127 + 2 + 4 - 2));
  kernels.prepare(packed.view, std::vector<float>(32, 0.0f).data(), 0, 32, a.rows, 0);
  CHECK(a.rows.scales[0] == 0.0f && a.rows.offsets[0] == 0);
}

// A NaN or an infinity among activations or weights shows in the results it has part in, and in no other.
void test_what_is_no_number_shows(const Kernels& kernels) {
  for (Precision precision : kAll)
    for (float bad : {NAN, INFINITY}) {
      std::vector<float> w(32 * 64, 1.0f), x(2 * 64, 1.0f);
      x[5] = bad;                    // then larger and smaller ones in the same lane
      x[21] = 3.0f, x[37] = 0.5f;
      w[17 * 64 + 9] = bad;
      const PackedMatrix packed = pack_floats(precision, {64, 64}, w, 32, 64);
      Activations a(packed.view, 2);
      prepare_all(kernels, packed.view, x, 2, 64, &a);
      float out[2 * 32];
      kernels.linear(packed.view, a.rows, 0, 2, 0, 2, 0, out, 32, a.scratch.data());
      for (size_t i = 0; i < 64; ++i) CHECK(std::isfinite(out[i]) == (i >= 32 && i != 32 + 17));
    }
}

// Groups too small for a finite factor become zero, not garbage.
void test_tiny_groups(const Kernels& kernels) {
  const PackedMatrix packed = pack_floats(Precision::int8, {32, 32}, std::vector<float>(16 * 32, 1e-44f), 16, 32);
  std::vector<float> row(32, NAN);
  unpack_row(packed.view, 3, 32, row.data());
  for (float value : row) CHECK(value == 0.0f);
  Activations a(packed.view, 1);
  std::vector<float> x(32, 1e-38f);
  x[1] = -1e-38f, x[2] = 0.0f;
  kernels.prepare(packed.view, x.data(), 0, 32, a.rows, 0);
  for (size_t i = 0; i < 32; ++i) CHECK(a.rows.data[i] == 0);
  CHECK(a.rows.offsets[0] == 0);
}

// All variants store the bits of the scalar conversion: special values, ties, denormals, and a sweep of the rest.
void test_bf16_bits(const Kernels& kernels) {
  std::vector<uint32_t> bits = {0x00000000, 0x80000000, 0x00000001, 0x807fffff, 0x00007fff, 0x00008000, 0x00018000,
                                0x3f808000, 0x3f818000, 0x3f808001, 0x3f817fff, 0x7f7fffff, 0xff7f8000, 0x7f800000,
                                0xff800000, 0x7f800001, 0xff800001, 0x7fc00000, 0xffffffff, 0x7f80ffff, 0x7fffffff};
  for (uint64_t b = 0; b < (uint64_t{1} << 32); b += 104729) bits.push_back(static_cast<uint32_t>(b));
  bits.resize(bits.size() / 32 * 32);
  std::vector<uint16_t> stored(bits.size());
  Rows rows;
  rows.data = reinterpret_cast<uint8_t*>(stored.data());
  rows.stride = 2 * stored.size();
  const Matrix w = describe(Precision::bf16, {}, 16, bits.size(), 0);
  kernels.prepare(w, reinterpret_cast<const float*>(bits.data()), 0, bits.size(), rows, 0);
  for (size_t i = 0; i < bits.size(); ++i) CHECK(stored[i] == float_to_bf16(std::bit_cast<float>(bits[i])));
}

// A tensor may begin at any byte of its file.
void test_pack_misaligned() {
  std::mt19937 random(6);
  const auto plain = normals(random, 16 * 16);
  std::vector<char> file(1 + plain.size() * sizeof(float));
  std::memcpy(file.data() + 1, plain.data(), plain.size() * sizeof(float));
  ThreadPool pool(1);
  const Source source{file.data() + 1, Dtype::fp32, 16, 16, 16, 1};
  const PackedMatrix a = pack(Precision::fp32, {}, {source}, plain_rows(16), plain_cols(16), kBest, pool);
  const PackedMatrix b = pack_floats(Precision::fp32, {0, 0}, plain, 16, 16);
  CHECK(std::memcmp(a.storage.data(), b.storage.data(), a.storage.size()) == 0);
}

// All variants, with any number of threads, choose the same codes: of weights that span many scales, that are all alike, all
// of one sign, or partly no numbers.
void test_pack_is_the_same_everywhere(const Kernels& kernels) {
  std::mt19937 random(11);
  const size_t rows = 48, cols = 160;
  std::vector<float> w = normals(random, rows * cols);
  for (size_t i = 0; i < w.size(); ++i) w[i] *= std::pow(2.0f, static_cast<float>(i / 16 % 12) - 6.0f);
  for (size_t c = 0; c < cols; ++c) {
    w[3 * cols + c] = 0.25f, w[4 * cols + c] = -std::fabs(w[4 * cols + c]), w[5 * cols + c] = std::fabs(w[5 * cols + c]);
    w[6 * cols + c] = 1e-41f, w[7 * cols + c] = 0.0f;
  }
  w[8 * cols + 77] = NAN, w[9 * cols + 13] = -INFINITY;
  const Source source{w.data(), Dtype::fp32, rows, cols, static_cast<ptrdiff_t>(cols), 1};
  for (Precision precision : kAll) {
    ThreadPool one(1), three(3);
    const auto packed = [&](const Kernels& by, ThreadPool& pool) {
      return pack(precision, {32, 128}, {source}, plain_rows(rows), plain_cols(cols), by, pool);
    };
    const PackedMatrix a = packed(kernels_for(Isa::portable), one), b = packed(kernels, three);
    CHECK(std::memcmp(a.storage.data(), b.storage.data(), a.storage.size()) == 0);
  }
}

// No weight is off by more than half a step, and in 4 bits every 16 columns have the best factor of the one that clips
// nothing and the three below it.
void test_nearest_codes(const Kernels& kernels) {
  std::mt19937 random(12);
  for (int round = 0; round < 50; ++round) {
    const auto w = normals(random, 128, 0.02f);
    GroupCodes made;
    for (Precision precision : {Precision::int8, Precision::nested6}) {
      kernels.quantise(precision, w.data(), 128, &made);
      const float step = bf16_to_float(made.scale);
      for (size_t i = 0; i < 128; ++i) CHECK(std::fabs(w[i] - step * made.codes[i]) <= 0.5001f * step);
    }
    kernels.quantise(Precision::int4, w.data(), 128, &made);
    for (size_t at = 0; at < 128; at += kSubColumns) {
      const auto error = [&](int factor) {
        double sum = 0.0;
        const double step = static_cast<double>(bf16_to_float(made.scale)) * factor;
        for (size_t i = at; i < at + kSubColumns; ++i)
          sum += std::pow(w[i] - step * std::clamp(std::nearbyint(w[i] / step), -8.0, 7.0), 2);
        return sum;
      };
      const int chosen = made.subs[at / kSubColumns];
      CHECK(chosen >= 1 && chosen <= 15);
      const auto clips = [&](int factor) {
        const float step = bf16_to_float(made.scale) * static_cast<float>(factor);
        return std::any_of(w.begin() + at, w.begin() + at + kSubColumns, [&](float v) { return v > 7 * step || v < -8 * step; });
      };
      int enough = 1;
      while (enough < 15 && clips(enough)) ++enough;
      for (int other = enough; other >= std::max(1, enough - 3); --other)
        CHECK(error(chosen) <= error(other) * (1 + 1e-5));
      for (size_t i = at; i < at + kSubColumns; ++i)
        CHECK(made.codes[i] == std::clamp(static_cast<int>(std::nearbyint(w[i] / (bf16_to_float(made.scale) * static_cast<float>(chosen)))), -8, 7));
    }
  }
}

// Strided, transposed, 16-bit sources and row maps give what a plain float32 copy gives.
void test_pack_sources() {
  ThreadPool pool(2);
  std::mt19937 random(2);
  const size_t rows = 20, cols = 40;
  const auto plain = normals(random, rows * cols);
  std::vector<uint16_t> transposed(rows * cols);
  std::vector<float> rounded(rows * cols);
  for (size_t r = 0; r < rows; ++r)
    for (size_t c = 0; c < cols; ++c) {
      transposed[c * rows + r] = float_to_bf16(plain[r * cols + c]);
      rounded[r * cols + c] = bf16_to_float(transposed[c * rows + r]);
    }
  const Source source{transposed.data(), Dtype::bf16, rows, cols, 1, static_cast<ptrdiff_t>(rows)};
  for (Precision precision : kAll) {
    const PackedMatrix a = pack(precision, {32, 32}, {source}, plain_rows(rows), plain_cols(cols), kBest, pool);
    const PackedMatrix b = pack_floats(precision, {32, 32}, rounded, rows, cols);
    CHECK(a.storage.size() == b.storage.size());
    CHECK(std::memcmp(a.storage.data(), b.storage.data(), a.storage.size()) == 0);
  }
}

#if defined(__linux__)
// Nothing is read further behind the last row than `Rows` says: an unreadable page lies there.
void test_rows_at_the_end_of_memory(const Kernels& kernels) {
  std::mt19937 random(11);
  const size_t page = 4096, size = 16 * page;
  auto* memory = static_cast<uint8_t*>(mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  CHECK(memory != MAP_FAILED && mprotect(memory + size - page, page, PROT_NONE) == 0);
  for (const Case& c : {Case{32, 272, 33, 256, 256}, Case{32, 16, 7, 128, 128}, Case{16, 144, 40, 48, 96}}) {
    const auto w = normals(random, c.rows * c.cols), x = normals(random, c.tokens * c.cols);
    const PackedMatrix packed = pack_floats(Precision::int8, {c.group, c.scale_group}, w, c.rows, c.cols);
    Activations a(packed.view, c.tokens);
    a.rows.data = memory + size - page - kLineBytes - c.tokens * a.rows.stride;
    prepare_all(kernels, packed.view, x, c.tokens, c.cols, &a);
    std::vector<float> out(c.tokens * c.rows), one(c.rows);
    kernels.linear(packed.view, a.rows, 0, c.tokens, 0, packed.view.panels(), 0, out.data(), c.rows, a.scratch.data());
    for (size_t t = 0; t < c.tokens; ++t) {
      kernels.linear(packed.view, a.rows, t, 1, 0, packed.view.panels(), 0, one.data(), c.rows, a.scratch.data());
      CHECK(std::memcmp(one.data(), out.data() + t * c.rows, c.rows * sizeof(float)) == 0);
    }
  }
  munmap(memory, size);
}
#endif

}  // namespace

int main() {
  test_pack_sources();
  test_pack_misaligned();
  test_codes_that_do_not_fit();
  for_each_isa([](const Kernels& kernels) {
    test_nearest_codes(kernels);
    test_pack_is_the_same_everywhere(kernels);
    test_against_double(kernels);
#if defined(__linux__)
    test_rows_at_the_end_of_memory(kernels);
#endif
    test_codes(kernels);
    test_bounds(kernels);
    test_bounds_of_what_is_no_number(kernels);
    test_int8_extremes(kernels);
    test_prepare_rounds_and_fills(kernels);
    test_what_is_no_number_shows(kernels);
    test_tiny_groups(kernels);
    test_bf16_bits(kernels);
  });
  std::puts("linear: ok");
}
