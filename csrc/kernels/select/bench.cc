// bench_select [vocab]: microseconds of one draw by setting, for every variant, on one thread. The logits are random, as
// flat a distribution as a head gives: no small set of them holds the weight.
#include <time.h>

#include "kernels/select/select.h"
#include "tests/testing.h"

using namespace ernie;

namespace {

const struct {
  const char* name;
  Select select;
} kSettings[] = {
    {"greedy", {}},
    {"temperature 1", {.temperature = 1.0}},
    {"top-k 50", {.temperature = 1.0, .top_k = 50}},
    {"top-k 20000", {.temperature = 1.0, .top_k = 20000}},
    {"top-p 0.8", {.temperature = 1.0, .top_p = 0.8}},
    {"top-p 0.8, temperature 50", {.temperature = 50.0, .top_p = 0.8}},
    {"min-p 0.05", {.temperature = 1.0, .min_p = 0.05}},
    {"top-k 50, top-p 0.8, min-p 0.05", {.temperature = 1.0, .top_k = 50, .top_p = 0.8, .min_p = 0.05}},
    {"log-probabilities of 5", {.temperature = 1.0, .top_p = 0.8, .logprobs = 5}},
};

double thread_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double microseconds(const Kernels& kernels, Select select, const std::vector<float>& logits, bool masked) {
  if (masked) select.mask.assign((logits.size() + 31) / 32, 0xdeadbeefu);
  SelectScratch scratch;
  std::vector<float> row;
  double best = 1e9;
  for (int i = 0; i < 30; ++i) {
    row = logits;
    select.seed = static_cast<uint64_t>(i);
    const double start = thread_seconds();
    select_row(kernels.select, select, row.data(), row.size(), 1, scratch);
    best = std::min(best, thread_seconds() - start);
  }
  return 1e6 * best;
}

}  // namespace

int main(int argc, char** argv) {
  const size_t vocab = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 103424;
  std::mt19937 random(1);
  const auto logits = normals(random, vocab);
  std::printf("%-34s", "microseconds");
  for (Isa isa : supported_isas()) std::printf(" %12s", isa_name(isa));
  std::printf("\n");
  for (bool masked : {false, true})
    for (const auto& setting : kSettings) {
      std::printf("%-26s%8s", setting.name, masked ? "masked" : "");
      for (Isa isa : supported_isas()) std::printf(" %12.0f", microseconds(kernels_for(isa), setting.select, logits, masked));
      std::printf("\n");
    }
}
