#include "kernels/select/draw.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace ernie {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();
constexpr size_t kSorted = 2048;  // fewer candidates than these are sorted rather than ranked

float clean(float logit) { return std::isnan(logit) ? kNever : logit; }

// The count-th largest of n floats.
float largest(const float* x, size_t n, size_t count, std::vector<float>& order) {
  order.resize(n);
  std::transform(x, x + n, order.begin(), clean);  // NaN has no place in an order
  std::nth_element(order.begin(), order.begin() + static_cast<ptrdiff_t>(count - 1), order.end(), std::greater<float>());
  return order[count - 1];
}

void keep_best(std::vector<Candidate>& candidates, size_t count) {
  if (candidates.size() <= count) return;
  std::nth_element(candidates.begin(), candidates.begin() + static_cast<ptrdiff_t>(count), candidates.end());
  candidates.resize(count);
}

// Ranks reach down to where weights become 0, 28.5 temperatures below the top, or as far as the row seems to.
double ranked_range(const Select& select, float top, const std::vector<float>& block_tops) {
  double depth = 0.0;
  for (float block : block_tops)
    if (block > kNever) depth = std::max(depth, static_cast<double>(top) - block);
  const double range = 28.5 * select.temperature;
  return depth > 0.0 ? std::min(range, 4.0 * depth) : range;
}

// `least` 0 lets all count.
Weighing weighing(const Select& select, float top, double range) {
  const double least = std::ceil(std::min(std::max(select.min_p, 0.0), 1.0) * std::ldexp(1.0, kWeightBits));
  return {top, kLog2E / select.temperature, static_cast<float>(kRanks / range), static_cast<int64_t>(least)};
}

// The prefix, in the order of candidates, whose weights first reach a target.
struct Prefix {
  int32_t id;   // its last one
  int64_t sum;  // its weights
};

// Weights of ids by rank, best rank first; finds prefixes without sorting more than a rank's candidates.
class Ranking {
 public:
  Ranking(const float* logits, const int64_t* weights, const uint16_t* ranks, size_t n, SelectScratch& scratch)
      : logits_(logits), weights_(weights), ranks_(ranks), n_(n), scratch_(scratch) {
    // Two sums for each rank, taken in turn: neighbours often share a rank, and would wait for one another.
    scratch.ranked.assign(2 * kRanks, 0);
    int64_t* even = scratch.ranked.data();
    int64_t* odd = even + kRanks;
    for (size_t i = 0; i + 2 <= n; i += 2) even[ranks[i]] += weights[i], odd[ranks[i + 1]] += weights[i + 1];
    if (n % 2 != 0) even[ranks[n - 1]] += weights[n - 1];
    for (size_t r = 0; r < kRanks; ++r) even[r] += odd[r];
  }

  // The shortest prefix whose sum is at least `target`, which is above 0 and at most the sum of all.
  Prefix find(int64_t target) const {
    const int64_t* sums = scratch_.ranked.data();
    int64_t before = 0;
    size_t rank = 0;
    while (before + sums[rank] < target) before += sums[rank++];
    std::vector<Candidate>& some = scratch_.some;
    if (some.size() < n_) some.resize(n_);
    size_t count = 0;
    for (size_t i = 0; i < n_; ++i) {
      some[count] = {logits_[i], static_cast<int32_t>(i)};
      count += ranks_[i] == rank;
    }
    return walk(some.data(), some.data() + count, before, target);
  }

 private:
  // Splits what is left at the middle of its range while it is long, then sorts and adds.
  Prefix walk(Candidate* first, Candidate* last, int64_t before, int64_t target) const {
    while (static_cast<size_t>(last - first) > kSorted) {
      const auto [low, high] = std::minmax_element(first, last, [](auto& a, auto& b) { return a.logit < b.logit; });
      if (low->logit == high->logit) break;  // in the order of ids already
      const float middle = low->logit + (high->logit - low->logit) / 2;
      const float cut = middle < high->logit ? middle : low->logit;
      Candidate* lower = std::stable_partition(first, last, [cut](const Candidate& c) { return c.logit > cut; });
      const int64_t upper = sum(first, lower);
      if (before + upper >= target) {
        last = lower;
      } else {
        before += upper;
        first = lower;
      }
    }
    if (static_cast<size_t>(last - first) <= kSorted) std::sort(first, last);
    for (; before + weights_[first->id] < target; ++first) before += weights_[first->id];
    return {first->id, before + weights_[first->id]};
  }
  int64_t sum(const Candidate* first, const Candidate* last) const {
    return std::accumulate(first, last, int64_t{0}, [&](int64_t s, const Candidate& c) { return s + weights_[c.id]; });
  }

  const float* logits_;
  const int64_t* weights_;
  const uint16_t* ranks_;
  size_t n_;
  SelectScratch& scratch_;
};

// Sets the weights of all but the `count` best to 0, and adds up the others'.
Weighed keep_best_weights(const float* logits, size_t n, size_t count, int64_t least, SelectScratch& scratch) {
  const uint16_t* ranks = scratch.ranks.data();
  int64_t* weights = scratch.weights.data();
  scratch.ranked.assign(kRanks, 0);
  for (size_t i = 0; i < n; ++i) ++scratch.ranked[ranks[i]];
  size_t rank = 0;
  while (count > static_cast<size_t>(scratch.ranked[rank])) count -= static_cast<size_t>(scratch.ranked[rank++]);
  std::vector<Candidate>& last = scratch.candidates;  // those of the last rank of which some stay; `id` is an index
  last.clear();
  for (size_t i = 0; i < n; ++i) {
    if (ranks[i] == rank) last.push_back({logits[i], static_cast<int32_t>(i)});
    if (ranks[i] > rank) weights[i] = 0;
  }
  const auto stay = last.begin() + static_cast<ptrdiff_t>(count);
  std::nth_element(last.begin(), stay, last.end());
  for (auto c = stay; c != last.end(); ++c) weights[c->id] = 0;
  Weighed sums{0, 0};
  for (size_t i = 0; i < n; ++i) sums.total += weights[i], sums.kept += weights[i] >= least ? weights[i] : 0;
  return sums;
}

// Step 4's prefix and step 5's draw, by something that finds prefixes.
template <typename Find>
int32_t draw_by(const Select& select, const Weighed& sums, double u, const Find& find) {
  int64_t kept = std::max(sums.kept, int64_t{1} << kWeightBits);  // the best stays, whatever min_p is
  if (select.top_p < 1.0) {
    const auto target = static_cast<int64_t>(std::ceil(select.top_p * static_cast<double>(sums.total)));
    kept = std::min(kept, find(std::clamp(target, int64_t{1}, sums.total)).sum);
  }
  const auto point = static_cast<int64_t>(u * static_cast<double>(kept));
  return find(std::min(point, kept - 1) + 1).id;
}

}  // namespace

bool is_few(size_t count, size_t n) { return count <= kSorted && count <= (n + kScanBlock - 1) / kScanBlock; }

void best_of(const float* logits, size_t n, size_t count, SelectScratch& scratch) {
  std::vector<Candidate>& found = scratch.candidates;
  found.clear();
  if (count == 0) return;
  const size_t blocks = (n + kScanBlock - 1) / kScanBlock;
  // At least `count` values reach the count-th best of the blocks' best.
  const float bound = is_few(count, n) ? largest(scratch.block_tops.data(), blocks, count, scratch.order)
                                       : largest(logits, n, std::min(count, n), scratch.order);
  for (size_t block = 0; block < blocks; ++block) {
    if (scratch.block_tops[block] < bound) continue;
    const size_t end = std::min(n, (block + 1) * kScanBlock);
    for (size_t i = block * kScanBlock; i < end; ++i)
      if (!(logits[i] < bound)) found.push_back({clean(logits[i]), static_cast<int32_t>(i)});
  }
  keep_best(found, count);
}

int32_t draw_dense(const SelectKernels& kernels, const Select& select, const float* logits, size_t n, float top, double u,
                   SelectScratch& scratch) {
  scratch.weights.resize(n);
  scratch.ranks.resize(n);
  const Weighing how = weighing(select, top, ranked_range(select, top, scratch.block_tops));
  Weighed sums = kernels.weigh(how, logits, n, scratch.weights.data(), scratch.ranks.data());
  if (select.top_k != 0 && select.top_k < n) sums = keep_best_weights(logits, n, select.top_k, how.least, scratch);
  const Ranking ranking(logits, scratch.weights.data(), scratch.ranks.data(), n, scratch);
  return draw_by(select, sums, u, [&](int64_t target) { return ranking.find(target); });
}

int32_t draw_candidates(const SelectKernels& kernels, const Select& select, double u, SelectScratch& scratch) {
  std::vector<Candidate>& candidates = scratch.candidates;
  std::sort(candidates.begin(), candidates.end());
  const size_t n = candidates.size();
  scratch.logits.resize(n);
  for (size_t i = 0; i < n; ++i) scratch.logits[i] = candidates[i].logit;
  scratch.weights.resize(n);
  scratch.ranks.resize(n);
  const Weighed sums = kernels.weigh(weighing(select, candidates.front().logit, 1.0), scratch.logits.data(), n,
                                     scratch.weights.data(), scratch.ranks.data());
  return draw_by(select, sums, u, [&](int64_t target) {
    int64_t sum = scratch.weights[0];
    size_t i = 0;
    while (sum < target) sum += scratch.weights[++i];
    return Prefix{candidates[i].id, sum};
  });
}

}  // namespace ernie
