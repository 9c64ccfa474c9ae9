// bench_attention [ISA...]: one thread, 8 heads of 128 over one key/value head, as in ERNIE 4.5 0.3B.
// Decode: microseconds and GB/s of one token against 512 to 8,192 keys that lie as in a cache of 18 layers, taking layer
// after layer so that nothing is in a near cache. Prefill: milliseconds of a whole prompt, and GFLOP/s of its causal half.
// Times are of the thread, the best of several.
#include <cstring>
#include <ctime>

#include "tests/testing.h"

using namespace ernie;

namespace {

constexpr size_t kHeads = 8, kHead = 128, kLayers = 36, kMost = 8192, kTokens = 32;

double now() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

class Bench {
 public:
  explicit Bench(KvPrecision precision)
      : precision_(precision), layout_(kv_layout(precision, kHead)), q_bytes_(query_bytes(precision, kHead)),
        cache_(kMost / 16 * kLayers * layout_.bytes), q_(kTokens * kHeads * q_bytes_ + 16 * q_bytes_),
        scratch_(attend_scratch_bytes(kHead)), out_(2 * kTokens * kHeads * kHead), numbers_(4 * kTokens * kHeads) {
    for (size_t i = 0; i < kMost / 16; ++i) pages_.push_back(cache_.data() + i * kLayers * layout_.bytes);
    fill();
  }

  double decode(const Kernels& kernels, size_t keys) {
    double best = 1e9;
    size_t layer = 0;
    for (int i = 0; i < 40; ++i, layer = (layer + 1) % kLayers) {
      const double begin = now();
      attend(kernels, layer, keys - 1, 1);
      best = std::min(best, now() - begin);
    }
    return best;
  }
  double prefill(const Kernels& kernels, size_t tokens) {
    double best = 1e9;
    for (int i = 0; i < 3; ++i) {
      const double begin = now();
      for (size_t at = 0; at < tokens; at += kTokens) attend(kernels, 0, at, kTokens);
      best = std::min(best, now() - begin);
    }
    return best;
  }
  size_t bytes(size_t keys) const { return keys / 16 * layout_.bytes; }

 private:
  void fill() {
    std::mt19937 random(1);
    const auto values = normals(random, 4096 + kHead);
    const Kernels& kernels = kernels_for(supported_isas().back());
    for (size_t t = 0; t < kMost; ++t)
      for (size_t layer = 0; layer < kLayers; ++layer) {
        KvEntry entry{values.data() + (t * 37 + layer * 131) % 4096, const_cast<uint8_t*>(pages_[t / 16]) + layer * layout_.bytes,
                      layout_, precision_, kHead, kHead, t % 16};
        kernels.store_key(entry);
        kernels.store_value(entry);
      }
    for (size_t row = 0; row < kTokens * kHeads; ++row)
      kernels.store_query(values.data() + row * 11 % 4096, kHead, precision_, q_.data() + row * q_bytes_, q_bytes_);
  }
  void attend(const Kernels& kernels, size_t layer, size_t first, size_t tokens) {
    constexpr size_t kStride = kHeads * kHead, kRows = kTokens * kHeads;
    const Attended to = {out_.data(), kStride, numbers_.data(), numbers_.data() + kRows};
    const Attended next = {out_.data() + kTokens * kStride, kStride, numbers_.data() + 2 * kRows, numbers_.data() + 3 * kRows};
    for (size_t span = 0; span < first + tokens; span += kAttentionSpan) {
      kernels.attend({.pages = pages_.data(), .head = layer * layout_.bytes, .layout = layout_, .precision = precision_,
                      .d = kHead, .padded_d = kHead, .heads = kHeads, .q = q_.data(), .query_bytes = q_bytes_,
                      .tokens = tokens, .first_position = first, .span = span, .to = span == 0 ? to : next,
                      .scratch = scratch_.data()});
      if (span > 0) kernels.join(to, next, tokens, kHeads, kHead);
    }
    kernels.finish(to, tokens, kHeads, kHead);
  }

  KvPrecision precision_;
  KvLayout layout_;
  size_t q_bytes_;
  AlignedBuffer cache_, q_, scratch_;
  std::vector<const uint8_t*> pages_;
  std::vector<float> out_, numbers_;
};

}  // namespace

int main(int argc, char** argv) {
  const char* names[] = {"fp32", "bf16", "int8"};
  for (KvPrecision precision : {KvPrecision::fp32, KvPrecision::bf16, KvPrecision::int8}) {
    Bench bench(precision);
    for (Isa isa : supported_isas()) {
      bool wanted = argc == 1;
      for (int i = 1; i < argc; ++i) wanted |= std::strcmp(argv[i], isa_name(isa)) == 0;
      if (!wanted) continue;
      const Kernels& kernels = kernels_for(isa);
      std::printf("%-12s %s:", isa_name(isa), names[static_cast<int>(precision)]);
      for (size_t keys : {512, 2048, 8192}) {
        const double seconds = bench.decode(kernels, keys);
        std::printf("  %zu keys %.1f us %.1f GB/s", keys, seconds * 1e6, static_cast<double>(bench.bytes(keys)) / seconds * 1e-9);
      }
      for (size_t tokens : {512, 2048}) {
        const double seconds = bench.prefill(kernels, tokens);
        const double flops = 2.0 * kHeads * kHead * static_cast<double>(tokens * tokens);
        std::printf("  %zu tokens %.2f ms %.0f GFLOP/s", tokens, seconds * 1e3, flops / seconds * 1e-9);
      }
      std::printf("\n");
    }
  }
}
