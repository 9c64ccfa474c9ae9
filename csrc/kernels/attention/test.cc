// Every variant against a plain softmax in double precision, in every KV precision; chunks and spans give the same bits
// as the whole; what a row must not see does not reach it.
#include "tests/testing.h"

#include <cstring>

#include "base/bf16.h"

using namespace ernie;

namespace {

constexpr float kLog2E = 1.44269504f;
constexpr KvPrecision kPrecisions[] = {KvPrecision::fp32, KvPrecision::bf16, KvPrecision::int8};

// The cache of one layer and head, and what it holds as its layout (layout.h) says.
class Cache {
 public:
  Cache(const Kernels& kernels, size_t tokens, size_t d, KvPrecision precision)
      : d(d), padded(round_up(d, 16)), precision(precision), layout(kv_layout(precision, d)), kernels_(kernels) {
    for (size_t i = 0; i < div_up(tokens, 16); ++i) {
      pages.emplace_back(kOffset + layout.bytes);
      pointers.push_back(pages.back().data());
    }
  }
  // What a freed page may hold: values that are no numbers, keys of any kind. Padding stays zero.
  void spoil() {
    const std::vector<float> bad(padded, NAN);
    for (size_t t = 0; t < pages.size() * 16; ++t) write(t, bad, bad);
  }
  void write(size_t token, std::vector<float> key, std::vector<float> value) {
    key.resize(padded), value.resize(padded);
    uint8_t* head = pages[token / 16].data() + kOffset;
    KvEntry entry{key.data(), head, layout, precision, d, padded, token % 16};
    kernels_.store_key(entry);
    entry.from = value.data();
    kernels_.store_value(entry);
  }
  double key(size_t token, size_t i) const {
    const uint8_t* head = pages[token / 16].data() + kOffset;
    const size_t slot = token % 16;
    if (precision == KvPrecision::fp32) return at<float>(head, (i * 16 + slot) * 4);
    if (precision == KvPrecision::bf16) return bf16_to_float(at<uint16_t>(head, i / 2 * 64 + slot * 4 + i % 2 * 2));
    return at<int8_t>(head, int8_offset(i / 2, slot * 2 + i % 2)) *
           static_cast<double>(at<float>(head, layout.key_scales + slot * 4));
  }
  double value(size_t token, size_t i) const {
    const uint8_t* head = pages[token / 16].data() + kOffset;
    const uint8_t* values = head + layout.values;
    const size_t slot = token % 16;
    if (precision == KvPrecision::fp32) return at<float>(values, i / 16 * 1024 + slot * 64 + i % 16 * 4);
    if (precision == KvPrecision::bf16)
      return bf16_to_float(at<uint16_t>(values, i / 16 * 512 + slot / 2 * 64 + i % 16 * 4 + slot % 2 * 2));
    return at<int8_t>(values, i / 16 * 256 + int8_offset(slot / 2, i % 16 * 2 + slot % 2)) *
           static_cast<double>(at<float>(head, layout.value_scales + slot * 4));
  }

  static constexpr size_t kOffset = 128;
  size_t d, padded;
  KvPrecision precision;
  KvLayout layout;
  std::vector<AlignedBuffer> pages;
  std::vector<const uint8_t*> pointers;

 private:
  template <typename T>
  static T at(const uint8_t* base, size_t offset) {
    T value;
    std::memcpy(&value, base + offset, sizeof value);
    return value;
  }
  const Kernels& kernels_;
};

struct Shape {
  size_t tokens, heads, d;
};

// The queries of all tokens as attention reads them.
struct Queries {
  Queries(const Kernels& kernels, const Shape& s, KvPrecision precision, const std::vector<float>& q)
      : row_bytes(query_bytes(precision, s.d)), bytes((s.tokens * s.heads + 15) * row_bytes), precision(precision), d(s.d) {
    for (size_t row = 0; row < s.tokens * s.heads; ++row) {
      std::vector<float> padded(q.begin() + static_cast<ptrdiff_t>(row * s.d), q.begin() + static_cast<ptrdiff_t>((row + 1) * s.d));
      for (float& x : padded) x *= kLog2E;
      padded.resize(round_up(s.d, 16));
      kernels.store_query(padded.data(), padded.size(), precision, bytes.data() + row * row_bytes, row_bytes);
    }
  }
  double at(size_t row, size_t i) const {
    const uint8_t* from = bytes.data() + row * row_bytes;
    if (precision == KvPrecision::fp32) return reinterpret_cast<const float*>(from)[i];
    return bf16_to_float(reinterpret_cast<const uint16_t*>(from)[i]);
  }
  size_t row_bytes;
  AlignedBuffer bytes;
  KvPrecision precision;
  size_t d;
};

// Attention of tokens [first, first + count); `out` holds all tokens.
void run(const Kernels& kernels, const Cache& cache, const Shape& s, const Queries& q, size_t first, size_t count,
         std::vector<float>* out) {
  const size_t stride = s.heads * cache.padded, rows = count * s.heads;
  AlignedBuffer scratch(attend_scratch_bytes(cache.padded));
  std::memset(scratch.data(), 0xff, scratch.size());  // NaN: nothing that is not written may be used
  std::vector<float> shift(rows, NAN), sum(rows, NAN), next_shift(rows, NAN), next_sum(rows, NAN), next(count * stride, NAN);
  const Attended to = {out->data() + first * stride, stride, shift.data(), sum.data()};
  const Attended more = {next.data(), stride, next_shift.data(), next_sum.data()};
  for (size_t span = 0; span < first + count; span += kAttentionSpan) {
    kernels.attend({.pages = cache.pointers.data(), .head = Cache::kOffset, .layout = cache.layout,
                    .precision = cache.precision, .d = s.d, .padded_d = cache.padded, .heads = s.heads,
                    .q = q.bytes.data() + first * s.heads * q.row_bytes, .query_bytes = q.row_bytes, .tokens = count,
                    .first_position = first, .span = span, .to = span == 0 ? to : more, .scratch = scratch.data()});
    if (span > 0) kernels.join(to, more, count, s.heads, cache.padded);
  }
  kernels.finish(to, count, s.heads, cache.padded);
}

// What token t's head gives, in double precision from what is stored.
std::vector<double> reference(const Cache& cache, const Shape& s, const Queries& q, size_t t, size_t head) {
  std::vector<double> weights(t + 1), out(s.d);
  double top = -1e300, sum = 0.0;
  for (size_t j = 0; j <= t; ++j) {
    for (size_t i = 0; i < s.d; ++i) weights[j] += q.at(t * s.heads + head, i) * cache.key(j, i);
    top = std::max(top, weights[j]);
  }
  for (double& w : weights) sum += w = std::exp2(w - top);
  for (size_t j = 0; j <= t; ++j)
    for (size_t i = 0; i < s.d; ++i) out[i] += weights[j] / sum * cache.value(j, i);
  return out;
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// `scale` is the spread of the scores: above 100 one key takes nearly all.
void check_shape(const Kernels& kernels, const Shape& s, KvPrecision precision, float scale) {
  std::mt19937 random(4);
  Cache cache(kernels, s.tokens, s.d, precision);
  cache.spoil();
  float largest = 0.0f;
  for (size_t t = 0; t < s.tokens; ++t) {
    const auto v = normals(random, s.d);
    for (float x : v) largest = std::max(largest, std::fabs(x));
    cache.write(t, normals(random, s.d, scale), v);
  }
  const Queries q(kernels, s, precision, normals(random, s.tokens * s.heads * s.d, 1.0f / std::sqrt(static_cast<float>(s.d))));
  std::vector<float> whole(s.tokens * s.heads * cache.padded, NAN), parts = whole;
  run(kernels, cache, s, q, 0, s.tokens, &whole);
  for (size_t chunk : {1, 7, 32}) {
    for (size_t first = 0; first < s.tokens; first += chunk)
      run(kernels, cache, s, q, first, std::min(chunk, s.tokens - first), &parts);
    CHECK(same(whole, parts));
  }
  // Weights are rounded to 8 bits, at random, and so is a sum of a few of them; rounding of scores grows with them.
  const double rounding = precision == KvPrecision::fp32 ? 0.0 : 0.004;
  const double tolerance = largest * (rounding + 3e-6 * std::max(scale, 1.0f));
  for (size_t t = 0; t < s.tokens; t += 1 + t / 8)
    for (size_t h = 0; h < s.heads; ++h) {
      const std::vector<double> expected = reference(cache, s, q, t, h);
      for (size_t i = 0; i < s.d; ++i) CHECK_NEAR(whole[(t * s.heads + h) * cache.padded + i], expected[i], tolerance);
    }
}

// Whatever is no number must show in the rows that see it, and in no other.
void test_nan_stays(const Kernels& kernels, KvPrecision precision, bool in_value) {
  const Shape s{21, 3, 18};
  for (float bad : {NAN, INFINITY}) {
    Cache cache(kernels, s.tokens, s.d, precision);
    std::vector<float> ones(s.d, 1.0f), one_bad(s.d, 1.0f);
    one_bad[5] = bad;
    for (size_t t = 0; t < s.tokens; ++t)
      cache.write(t, t == 17 && !in_value ? one_bad : ones, t == 17 && in_value ? one_bad : ones);
    const Queries q(kernels, s, precision, std::vector<float>(s.tokens * s.heads * s.d, 1.0f));
    std::vector<float> out(s.tokens * s.heads * cache.padded);
    run(kernels, cache, s, q, 0, s.tokens, &out);
    for (size_t t = 0; t < s.tokens; ++t)
      for (size_t h = 0; h < s.heads; ++h)
        CHECK(std::isfinite(out[(t * s.heads + h) * cache.padded + 5]) == (t < 17));
  }
}

// Scores beyond every usual size still give finite results.
void test_extremes(const Kernels& kernels, KvPrecision precision) {
  const Shape s{40, 2, 32};
  for (float scale : {1e-20f, 1e4f, 1e15f}) {
    Cache cache(kernels, s.tokens, s.d, precision);
    std::mt19937 random(6);
    for (size_t t = 0; t < s.tokens; ++t) cache.write(t, normals(random, s.d, scale), std::vector<float>(s.d, 2.0f));
    const Queries q(kernels, s, precision, normals(random, s.tokens * s.heads * s.d, scale));
    std::vector<float> out(s.tokens * s.heads * cache.padded);
    run(kernels, cache, s, q, 0, s.tokens, &out);
    for (float x : out) CHECK_NEAR(x, 2.0, 0.02);
  }
}

void test_all_store_the_same_bits() {
  for (KvPrecision precision : kPrecisions)
    for (size_t d : {6, 18, 64, 128}) {
      const Kernels& first = kernels_for(Isa::portable);
      for_each_isa([&](const Kernels& kernels) {
        std::mt19937 random(8);
        Cache expected(first, 32, d, precision), found(kernels, 32, d, precision);
        for (size_t t = 0; t < 32; ++t) {
          auto key = normals(random, d, t % 5 == 0 ? 1e-39f : 3.0f), value = normals(random, d, t == 7 ? 0.0f : 1e5f);
          expected.write(t, key, value), found.write(t, key, value);
          for (size_t i = 0; i < d; ++i) {
            CHECK_NEAR(found.key(t, i), key[i], 0.05);
            CHECK_NEAR(found.value(t, i), value[i], 2000);
          }
        }
        for (size_t p = 0; p < expected.pages.size(); ++p)
          CHECK(std::memcmp(expected.pages[p].data(), found.pages[p].data(), found.pages[p].size()) == 0);
      });
    }
}

}  // namespace

int main() {
  test_all_store_the_same_bits();
  for_each_isa([](const Kernels& kernels) {
    for (KvPrecision precision : kPrecisions) {
      for (const Shape& shape : {Shape{1, 1, 8}, {5, 3, 18}, {17, 8, 32}, {40, 5, 64}, {300, 4, 16}, {530, 2, 128}, {70, 7, 80}})
        for (float scale : {2.0f, 300.0f}) check_shape(kernels, shape, precision, scale);
      check_shape(kernels, {1100, 2, 48}, precision, 2.0f);
      test_extremes(kernels, precision);
      for (bool in_value : {false, true}) test_nan_stays(kernels, precision, in_value);
    }
  });
  std::puts("attention: ok");
}
