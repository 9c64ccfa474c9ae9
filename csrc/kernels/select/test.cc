#include "kernels/select/select.h"

#include <algorithm>
#include <stdexcept>

#include "tests/testing.h"

using namespace ernie;

namespace {

const Kernels* kernels = nullptr;  // of the instruction set under test

Drawn draw(const Select& select, std::vector<float> logits, uint64_t position = 1) {
  static SelectScratch scratch;
  return select_row(kernels->select, select, logits.data(), logits.size(), position, scratch);
}

int32_t token(const Select& select, const std::vector<float>& logits, uint64_t position = 1) {
  return draw(select, logits, position).token;
}

void test_uniform() {
  // Philox4x32-10 of key 0, counter 0 begins 6627e8d5 e169c58d (Random123).
  CHECK(uniform(0, 0) == static_cast<double>(0x6627e8d5e169c58dull >> 11) * 0x1p-53);
  CHECK(uniform(1, 0) != uniform(0, 1));
  double sum = 0.0;
  for (uint64_t i = 0; i < 10000; ++i) sum += uniform(7, i);
  CHECK_NEAR(sum / 10000, 0.5, 0.02);
}

void test_greedy() {
  CHECK(token({}, {1, 3, 3, 2}) == 1);
  CHECK(token({.vocab_limit = 1}, {1, 3, 3, 2}) == 0);
  CHECK(token({.mask = {0b1000}}, {1, 3, 3, 2}) == 3);
  CHECK(token({.temperature = 1e-310}, {1, 3, 3, 2}) == 1);
  CHECK(token({.temperature = NAN}, {1, 3, 3, 2}) == 1);
  CHECK(token({.repetition_penalty = 2.0f, .seen = {1}, .counts = {0}}, {2, 3, 1}) == 0);
  CHECK(token({.presence_penalty = 1.5f, .seen = {1}, .counts = {1}}, {2, 3, 1}) == 0);
  CHECK(token({.frequency_penalty = 0.5f, .seen = {1}, .counts = {4}}, {2, 3, 1}) == 0);
  CHECK(token({.presence_penalty = 1.5f, .seen = {1}, .counts = {0}}, {2, 3, 1}) == 1);
}

void test_logits_that_are_no_numbers() {
  for (double temperature : {0.0, 1.0}) {
    CHECK_THROWS(token({.temperature = temperature}, {NAN, 3, 2}), std::runtime_error);
    CHECK_THROWS(token({.temperature = temperature}, {1, INFINITY, 2}), std::runtime_error);
    CHECK_THROWS(token({.temperature = temperature}, {-INFINITY, -INFINITY}), std::runtime_error);
    CHECK_THROWS(token({.temperature = temperature, .mask = {0}}, {1, 3, 3, 2}), std::runtime_error);
    CHECK(token({.temperature = temperature, .mask = {0b100}, .logprobs = 3}, {NAN, INFINITY, 2}) == 2);
  }
}

void test_the_best_token_stays_whatever_the_limits() {
  CHECK(token({.temperature = 1.0, .min_p = 2.0}, {1, 3, 2}) == 1);
  CHECK(token({.temperature = 1.0, .top_p = 0.0}, {1, 3, 2}) == 1);
}

std::vector<double> frequencies(Select select, const std::vector<float>& logits) {
  std::vector<double> seen(logits.size());
  const int draws = 20000;
  for (int i = 0; i < draws; ++i) {
    select.seed = i;
    seen[token(select, logits)] += 1.0 / draws;
  }
  return seen;
}

void test_distribution() {
  const std::vector<float> logits = {std::log(0.1f), std::log(0.5f), std::log(0.15f), std::log(0.25f)};
  const auto all = frequencies({.temperature = 1.0}, logits);
  for (size_t i = 0; i < 4; ++i) CHECK_NEAR(all[i], std::exp(logits[i]), 0.02);
  const auto top2 = frequencies({.temperature = 1.0, .top_k = 2}, logits);
  CHECK(top2[0] == 0 && top2[2] == 0);
  CHECK_NEAR(top2[1], 2.0 / 3, 0.02);
  const auto nucleus = frequencies({.temperature = 1.0, .top_p = 0.7}, logits);
  CHECK(nucleus[0] == 0 && nucleus[2] == 0 && nucleus[3] > 0);
  const auto minimum = frequencies({.temperature = 1.0, .min_p = 0.25}, logits);
  CHECK(minimum[0] == 0 && minimum[2] > 0);
  const auto sharp = frequencies({.temperature = 0.5}, logits);
  CHECK_NEAR(sharp[1], 0.25 / 0.345, 0.02);
}

void test_logprobs() {
  const std::vector<float> logits = {0, 1, 2, 2};
  const Drawn drawn = draw({.vocab_limit = 2, .logprobs = 3}, logits);
  const double log_sum = std::log(1 + std::exp(1.0) + 2 * std::exp(2.0));
  CHECK(drawn.token == 1 && drawn.top.size() == 3);
  CHECK_NEAR(drawn.logprob, 1 - log_sum, 1e-12);
  CHECK(drawn.top[0].first == 2 && drawn.top[1].first == 3 && drawn.top[2].first == 1);
}

}  // namespace

// The definition once more, one logit at a time.
int64_t weight(float logit, float top, double temperature) {
  const double y = std::max((static_cast<double>(logit) - top) * (kLog2E / temperature), -64.0);
  const double n = std::nearbyint(y);
  double p = kExp2[11];
  for (int k = 10; k >= 0; --k) p = p * (y - n) + kExp2[k];
  return std::llrint(std::ldexp(p, static_cast<int>(n) + kWeightBits));
}

int32_t defined_token(const Select& select, const std::vector<float>& logits, uint64_t position) {
  std::vector<Candidate> order;
  for (size_t i = 0; i < select.limit(logits.size()); ++i)
    if ((select.mask.empty() || (select.mask[i / 32] >> (i % 32) & 1) != 0) && std::isfinite(logits[i]))
      order.push_back({logits[i], static_cast<int32_t>(i)});
  std::sort(order.begin(), order.end());
  if (select.top_k != 0 && select.top_k < order.size()) order.resize(select.top_k);
  int64_t total = 0, kept = 0, prefix = 0;
  std::vector<int64_t> weights;
  for (const Candidate& c : order) weights.push_back(weight(c.logit, order[0].logit, select.temperature));
  for (int64_t w : weights) total += w, kept += static_cast<double>(w) >= select.min_p * 0x1p40 ? w : 0;
  kept = std::max(kept, weights[0]);
  if (select.top_p < 1.0) {
    const double target = std::max(1.0, std::ceil(select.top_p * static_cast<double>(total)));
    for (size_t i = 0; static_cast<double>(prefix) < target && i < weights.size(); ++i) prefix += weights[i];
    kept = std::min(kept, prefix);
  }
  const auto point = std::min(static_cast<int64_t>(uniform(select.seed, position) * static_cast<double>(kept)), kept - 1);
  int64_t sum = 0;
  for (size_t i = 0;; ++i)
    if ((sum += weights[i]) > point) return order[i].id;
}

std::vector<float> random_logits(std::mt19937& random, size_t n, int kind) {
  std::vector<float> logits = normals(random, n, kind == 0 ? 1.0f : kind == 1 ? 6.0f : 1e-4f);
  for (float& x : logits) {
    if (kind == 3) x = std::round(x * 2e4f);          // ties
    if (kind == 4) x = 0.25f;                         // nothing but ties
    if (kind == 5) x = std::pow(1000.0f, x * 1e4f);   // clustered at 0
    if (random() % 16 == 0) x = -INFINITY;
  }
  logits[n / 2] = 0.5f;
  return logits;
}

void test_against_the_definition() {
  std::mt19937 random(5);
  for (size_t n : {1, 3, 31, 64, 65, 1000, 70001}) {
    for (int round = 0; round < (n > 1000 ? 60 : 300); ++round) {
      const auto pick = [&](std::initializer_list<double> from) { return from.begin()[random() % from.size()]; };
      Select select{.temperature = pick({1e-29, 0.3, 1.0, 2.5, 1e6}),
                    .top_k = static_cast<size_t>(pick({0, 0, 1, 5, 40, 900, 30000, 2147483647})),
                    .top_p = pick({1.0, 0.999, 0.8, 0.3, 1e-9}),
                    .min_p = pick({0.0, 0.0, 0.01, 0.3, 1.0}),
                    .seed = random()};
      if (random() % 3 == 0) select.vocab_limit = n - n / 5;
      if (random() % 3 == 0) {
        for (size_t i = 0; i < (n + 31) / 32; ++i) select.mask.push_back(static_cast<uint32_t>(random()));
        select.mask[n / 64] |= 1u << (n / 2 % 32);
      }
      const auto logits = random_logits(random, n, round % 6);
      CHECK(token(select, logits, 9) == defined_token(select, logits, 9));
    }
  }
}

void test_passes_give_the_same_in_every_variant() {
  std::mt19937 random(6);
  const SelectKernels& plain = kernels_for(Isa::portable).select;
  for (size_t n : {1, 15, 16, 63, 64, 65, 1000}) {
    const auto logits = random_logits(random, n, 1);
    std::vector<float> tops(n), expected_tops(n);
    const Scanned row = kernels->select.scan(logits.data(), n, tops.data());
    plain.scan(logits.data(), n, expected_tops.data());
    CHECK(tops == expected_tops && !row.bad && row.top == *std::max_element(logits.begin(), logits.end()));
    std::vector<int64_t> weights(n), expected(n);
    std::vector<uint16_t> ranks(n), expected_ranks(n);
    const Weighing how{row.top, kLog2E / 0.7, 100.0f, int64_t{1} << 30};
    const Weighed sums = kernels->select.weigh(how, logits.data(), n, weights.data(), ranks.data());
    const Weighed same = plain.weigh(how, logits.data(), n, expected.data(), expected_ranks.data());
    CHECK(weights == expected && ranks == expected_ranks && sums.total == same.total && sums.kept == same.kept);
    double sum = 0.0;
    for (size_t i = 0; i < n; ++i) {
      if (std::isfinite(logits[i])) CHECK(weights[i] == weight(logits[i], row.top, 0.7));
      CHECK_NEAR(static_cast<double>(weights[i]), std::exp((static_cast<double>(logits[i]) - row.top) / 0.7) * 0x1p40, 0.51);
      sum += std::exp(static_cast<double>(logits[i]) - row.top);
    }
    CHECK_NEAR(kernels->select.sum_exp(logits.data(), n, row.top), sum, 1e-13 * sum);
    for (float bad : {NAN, INFINITY}) {
      auto with = logits;
      with[n - 1] = bad;
      CHECK(kernels->select.scan(with.data(), n, tops.data()).bad);
    }
  }
}

int main() {
  test_uniform();
  for_each_isa([](const Kernels& under_test) {
    kernels = &under_test;
    test_greedy();
    test_logits_that_are_no_numbers();
    test_the_best_token_stays_whatever_the_limits();
    test_distribution();
    test_logprobs();
    test_passes_give_the_same_in_every_variant();
    test_against_the_definition();
  });
  std::puts("select: ok");
}
