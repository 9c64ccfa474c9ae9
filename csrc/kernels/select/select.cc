#include "kernels/select/select.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "kernels/select/draw.h"

namespace ernie {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();
// Dividing by lower temperatures could overflow, and the draw would be the same.
constexpr double kGreedyBelow = 1e-30;

void philox_round(uint32_t counter[4], const uint32_t key[2]) {
  const uint64_t a = uint64_t{0xD2511F53u} * counter[0];
  const uint64_t b = uint64_t{0xCD9E8D57u} * counter[2];
  const uint32_t next[4] = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
                            static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
  std::copy(next, next + 4, counter);
}

Scanned scan(const SelectKernels& kernels, const float* logits, size_t n, SelectScratch& scratch) {
  scratch.block_tops.resize((n + kScanBlock - 1) / kScanBlock);
  return kernels.scan(logits, n, scratch.block_tops.data());
}

// Log-probabilities of the model itself: the alternatives, and what to subtract from a logit.
double report(const SelectKernels& kernels, const Select& select, const float* logits, size_t vocab,
              SelectScratch& scratch, Drawn* drawn) {
  const Scanned row = scan(kernels, logits, vocab, scratch);
  const double log_sum = row.bad ? std::numeric_limits<double>::quiet_NaN()
                                 : row.top + std::log(kernels.sum_exp(logits, vocab, row.top));
  best_of(logits, vocab, std::min<size_t>(static_cast<size_t>(select.logprobs), vocab), scratch);
  std::sort(scratch.candidates.begin(), scratch.candidates.end());
  for (const Candidate& c : scratch.candidates) drawn->top.emplace_back(c.id, c.logit - log_sum);
  return log_sum;
}

void penalise(const Select& select, float* logits) {
  for (size_t i = 0; i < select.seen.size(); ++i) {
    float& logit = logits[select.seen[i]];
    logit = logit > 0 ? logit / select.repetition_penalty : logit * select.repetition_penalty;
    const float count = static_cast<float>(select.counts[i]);
    logit -= select.frequency_penalty * count + select.presence_penalty * (count > 0 ? 1.0f : 0.0f);
  }
}

// The first among equals.
int32_t first_of(float top, const float* logits, size_t n, const SelectScratch& scratch) {
  const auto block = std::find(scratch.block_tops.begin(), scratch.block_tops.end(), top) - scratch.block_tops.begin();
  const float* from = logits + static_cast<size_t>(block) * kScanBlock;
  return static_cast<int32_t>(std::find(from, logits + n, top) - logits);
}

int32_t draw(const SelectKernels& kernels, const Select& select, const float* logits, size_t n, float top, double u,
             SelectScratch& scratch) {
  if (select.top_k != 0 && select.top_k < n && is_few(select.top_k, n)) {
    best_of(logits, n, select.top_k, scratch);
    return draw_candidates(kernels, select, u, scratch);
  }
  return draw_dense(kernels, select, logits, n, top, u, scratch);
}

}  // namespace

bool Select::greedy() const { return !(temperature >= kGreedyBelow); }  // so that no draw divides by NaN

double uniform(uint64_t seed, uint64_t position) {
  uint32_t counter[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0, 0};
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    philox_round(counter, key);
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  const uint64_t bits = static_cast<uint64_t>(counter[0]) << 32 | counter[1];
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

void check_select(const Select& select, size_t vocab) {
  if (select.seen.size() != select.counts.size()) throw std::invalid_argument("seen and counts differ in length");
  for (int32_t id : select.seen)
    if (id < 0 || static_cast<size_t>(id) >= vocab) throw std::invalid_argument("a seen id is out of range");
  if (!select.mask.empty() && select.mask.size() * 32 < vocab) throw std::invalid_argument("the mask is too short");
}

void check_row(Scanned row) {
  if (row.bad)
    throw std::runtime_error("logits hold NaN or +inf: the model's weights or the penalties are out of range");
  if (!(row.top > kNever))
    throw std::runtime_error("every token that may be drawn has the logit -inf: the model's weights are out of range");
}

Drawn select_row(const SelectKernels& kernels, const Select& select, float* logits, size_t vocab, uint64_t position,
                 SelectScratch& scratch) {
  Drawn drawn;
  double log_sum = 0.0;
  if (select.logprobs >= 0) {
    log_sum = report(kernels, select, logits, vocab, scratch, &drawn);
    scratch.raw.assign(logits, logits + vocab);
  }
  penalise(select, logits);
  const size_t n = select.limit(vocab);
  if (!select.mask.empty()) kernels.forbid(select.mask.data(), logits, n);
  const Scanned row = scan(kernels, logits, n, scratch);
  check_row(row);
  drawn.token = select.greedy() ? first_of(row.top, logits, n, scratch)
                                : draw(kernels, select, logits, n, row.top, uniform(select.seed, position), scratch);
  if (select.logprobs >= 0) drawn.logprob = scratch.raw[static_cast<size_t>(drawn.token)] - log_sum;
  return drawn;
}

int32_t select_candidates(const SelectKernels& kernels, const Select& select, std::vector<Candidate>& candidates,
                          uint64_t position, SelectScratch& scratch) {
  Scanned row{kNever, false};
  for (const Candidate& c : candidates) {
    row.bad |= !(c.logit < std::numeric_limits<float>::infinity());
    row.top = std::max(row.top, c.logit);
  }
  check_row(row);
  const size_t count = select.greedy() ? 1 : select.top_k == 0 ? candidates.size() : select.top_k;
  if (candidates.size() > count) {
    std::nth_element(candidates.begin(), candidates.begin() + static_cast<ptrdiff_t>(count - 1), candidates.end());
    candidates.resize(count);
  }
  if (select.greedy()) return candidates.front().id;
  scratch.candidates.swap(candidates);
  return draw_candidates(kernels, select, uniform(select.seed, position), scratch);
}

}  // namespace ernie
