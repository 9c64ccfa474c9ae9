// Pages, forks and limits of the KV cache; the step on small random models: refusals change nothing, results do not
// depend on batch, chunk or threads.
#include "model/model.h"

#include <cfenv>
#include <cstring>
#include <thread>
#include <utility>

#include "base/bf16.h"
#include "model/testing.h"

using namespace ernie;

namespace {

void test_cache() {
  const Config c = small(false);
  KvCache cache(c);
  const int64_t a = cache.open();
  cache.extend({{a, 40}});
  CHECK(cache.used_pages() == 3 && cache.at(a).length == 40);
  const int64_t b = cache.fork(a, 35);
  CHECK(cache.used_pages() == 3 && cache.at(b).pages == cache.at(a).pages);
  cache.page(cache.at(a).pages[2])[0] = 42;
  cache.extend({{b, 1}});  // the shared last page is copied first
  CHECK(cache.used_pages() == 4 && cache.at(b).pages[2] != cache.at(a).pages[2]);
  CHECK(cache.page(cache.at(b).pages[2])[0] == 42);
  cache.truncate(a, 16);
  CHECK(cache.at(a).pages.size() == 1 && cache.used_pages() == 3);
  CHECK_THROWS(cache.truncate(a, 17), std::invalid_argument);
  CHECK_THROWS(cache.fork(a, 17), std::invalid_argument);
  CHECK_THROWS(cache.extend({{a, 16}, {b, 16 * 19}}), CapacityError);
  CHECK(cache.at(a).length == 16 && cache.at(b).length == 36 && cache.used_pages() == 3);
  cache.open(), cache.open();
  CHECK_THROWS(cache.open(), CapacityError);
  CHECK_THROWS(cache.fork(a, 1), CapacityError);
  cache.free(a), cache.free(b);
  CHECK(cache.used_pages() == 0 && cache.free_pages() == 20);
  CHECK_THROWS(cache.at(a), std::invalid_argument);
}

// Two sequences that grow together out of one shared page need one copy of it: the last to write keeps the page.
void test_cache_shares_to_the_last_page() {
  Config c = small(false);
  c.max_pages = 2;
  KvCache cache(c);
  const int64_t a = cache.open();
  cache.extend({{a, 10}});
  const int64_t b = cache.fork(a, 10);
  cache.extend({{a, 1}, {b, 1}});
  CHECK(cache.used_pages() == 2 && cache.at(a).pages != cache.at(b).pages);
}

void test_sizes_that_do_not_fit_are_refused() {
  const auto refused = [](auto change) {
    Config c = small(true);
    change(c);
    CHECK_THROWS(c.check(), std::invalid_argument);
  };
  small(true).check();
  refused([](Config& c) { c.experts = 0; });  // and a layer of experts
  refused([](Config& c) { c.experts_per_token = 6; });
  refused([](Config& c) { c.max_step_tokens = 1 << 17; });
  refused([](Config& c) { c.hidden = size_t{1} << 30; });
  refused([](Config& c) { c.heads = c.kv_heads = c.head_dim = size_t{1} << 30; });
  refused([](Config& c) { c.shared_experts = size_t{1} << 60; });
  refused([](Config& c) { c.layers = 3; });
  refused([](Config& c) { c.down_group = 24; });
}

void test_scratch_is_known_beforehand() {
  for (bool moe : {false, true}) {
    Model model(small(moe), Isa::portable, 3);
    CHECK(model.scratch_bytes() == 0);
    CHECK_THROWS(model.open(), std::runtime_error);
    Filler().fill(model);
    CHECK(model.scratch_bytes() == Scratch(small(moe), 3).bytes() && model.scratch_bytes() > 0);
  }
}

void test_refusals(Model& model) {
  const int64_t s = model.open();
  CHECK_THROWS(model.forward({step(s, {}, 0)}), std::invalid_argument);
  CHECK_THROWS(model.forward({step(s, {50}, 1)}), std::invalid_argument);
  CHECK_THROWS(model.forward({step(s, {-1}, 1)}), std::invalid_argument);
  CHECK_THROWS(model.forward({step(s, {1}, 2)}), std::invalid_argument);
  CHECK_THROWS(model.forward({step(s, some_ids(65), 1)}), std::invalid_argument);
  CHECK_THROWS(model.forward({step(s, {1}, 1), step(s, {1}, 1)}), std::invalid_argument);
  CHECK_THROWS(model.forward({step(s + 1, {1}, 1)}), std::invalid_argument);
  StepInput masked = step(s, {1}, 1);
  masked.output = Output::select;
  masked.select.mask = {0, 0};
  CHECK_THROWS(model.forward({masked}), std::runtime_error);
  CHECK_THROWS(model.weights(), std::runtime_error);
  CHECK(model.forward({}).empty());
  CHECK(model.length(s) == 0 && model.used_tokens() == 0);
  model.free(s);
}

std::vector<float> logits_of(Model& model, const std::vector<size_t>& chunks, bool beside_others) {
  const std::vector<int32_t> ids = some_ids(60);
  const int64_t s = model.open();
  const int64_t other = beside_others ? model.open() : 0;
  std::vector<float> all;
  size_t at = 0;
  for (size_t chunk : chunks) {
    std::vector<StepInput> batch;
    if (beside_others) batch.push_back(step(other, {3}, 1));
    batch.push_back(step(s, {ids.begin() + at, ids.begin() + at + chunk}, chunk));
    auto outputs = model.forward(batch);
    const float* values = outputs.back().values;
    all.insert(all.end(), values, values + chunk * model.config().vocab);
    at += chunk;
  }
  model.free(s);
  if (beside_others) model.free(other);
  CHECK(model.used_tokens() == 0);
  return all;
}

// Everything smaller than a panel, every token to every expert, one token a step; and groups wider than the matrix.
void test_odd_shapes() {
  Config c = small(true);
  c.vocab = 3, c.hidden = 5, c.heads = c.kv_heads = 1, c.head_dim = 2, c.intermediate = 1, c.max_step_tokens = 1;
  c.experts = c.experts_per_token = 2, c.expert_intermediate = 3;
  for (size_t group : {16, 48, 256})
    for (Precision precision : {Precision::fp32, Precision::bf16, Precision::int8}) {
      c.precision = precision;
      c.group = c.down_group = group, c.head_group = 16;
      Model model(c, supported_isas().back(), 2);
      Filler().fill(model);
      const int64_t s = model.open();
      for (int i = 0; i < 40; ++i) {
        const auto outputs = model.forward({step(s, {i % 3}, 1)});
        for (size_t id = 0; id < 3; ++id) CHECK(std::isfinite(outputs[0].values[id]));
      }
    }
}

// Two models on one pool, driven and looked at from several threads: for the sanitizer that finds data races.
void test_calls_from_many_threads() {
  Model models[] = {{small(true), Isa::portable, 3}, {small(false), Isa::portable, 3}};
  for (Model& model : models) Filler().fill(model);
  std::vector<std::thread> callers;
  for (Model& model : models) {
    callers.emplace_back([&] {
      for (int i = 0; i < 5; ++i) logits_of(model, {30, 30}, false);
    });
    callers.emplace_back([&] {
      for (int i = 0; i < 200; ++i) {
        const int64_t s = model.open();
        CHECK(model.length(s) == 0 && model.free_tokens() <= 320);
        model.free(s);
      }
    });
  }
  for (auto& caller : callers) caller.join();
}

void test_model(bool moe, Precision precision, Isa isa) {
  Config c = small(moe);
  c.precision = precision;
  c.kv_precision = precision == Precision::fp32 ? KvPrecision::fp32 : KvPrecision::bf16;
  std::vector<float> first;
  for (int threads : {1, 3}) {
    Model model(c, isa, threads);
    Filler().fill(model);
    test_refusals(model);
    for (const auto& chunks : std::vector<std::vector<size_t>>{{60}, {1, 59}, {30, 7, 23}, {16, 16, 16, 12}})
      for (bool beside : {false, true}) {
        std::fesetround(beside ? FE_UPWARD : FE_TONEAREST);  // what another library may leave behind
        const auto logits = logits_of(model, chunks, beside);
        std::fesetround(FE_TONEAREST);
        for (float value : logits) CHECK(std::isfinite(value));
        if (first.empty()) first = logits;
        CHECK(std::memcmp(first.data(), logits.data(), first.size() * sizeof(float)) == 0);
      }
  }
}

// How a draw of number `n` is made: what it looks at, and which ids it may give.
Select some_select(int32_t n, size_t vocab) {
  Select select;
  select.temperature = n % 3 == 0 ? 0.0 : 0.7;
  select.top_k = n % 3 == 1 ? 5 : 0;
  select.top_p = n % 3 == 2 ? 0.9 : 1.0;
  select.vocab_limit = vocab - 7;
  select.seed = static_cast<uint64_t>(n);
  const size_t every = n % 4 == 0 ? 1 : n % 4 == 1 ? 3001 : n % 4 == 2 ? 1 : 2;
  if (n % 4 == 0) return select;
  select.mask.assign((vocab + 31) / 32, 0);
  for (size_t id = static_cast<size_t>(n) % every; id < vocab; id += every)
    if (every != 1 || id % 11 != 0) select.mask[id / 32] |= 1u << id % 32;
  return select;
}

// Draws from some logits are those from all, alone and three in a batch, with and without masks, and most are made so.
void test_draws_from_some_logits() {
  for (Precision precision : {Precision::fp32, Precision::bf16, Precision::int8, Precision::int4}) {
    Config c = small(false);
    c.vocab = 40007, c.hidden = 96, c.precision = precision;
    std::vector<int32_t> drawn[2];
    size_t from_some = 0;
    for (bool whole : {false, true}) {
      c.whole_head = whole;
      Model model(c, supported_isas().back(), 2);
      Filler().fill(model);
      for (int32_t first = 0; first < 72; ++first) {
        model.profile(true);
        std::vector<StepInput> batch;
        for (int i = 0; i < 1 + first % 3; ++i) {
          batch.push_back(step(model.open(), {first * 7 + i + 1}, 1));
          batch.back().output = Output::select;
          batch.back().select = some_select(first / 3 + (i == 1 ? 12 : 0), c.vocab);
        }
        const std::vector<StepOutput> outputs = model.forward(batch);
        for (size_t i = 0; i < batch.size(); ++i) {
          drawn[whole].push_back(outputs[i].drawn[0].token);
          const auto id = static_cast<size_t>(outputs[i].drawn[0].token);
          CHECK(batch[i].select.mask.empty() || (batch[i].select.mask[id / 32] >> id % 32 & 1) != 0);
          model.free(batch[i].sequence);
        }
        const Profile::Entry head = model.profile(false).entries()[static_cast<size_t>(Part::head)];
        from_some += head.bytes < model.packed_weights().head().bytes();
      }
    }
    CHECK(drawn[0] == drawn[1]);
    // Without planes only a mask of few ids lets a head be read in part: a quarter of the draws.
    const bool planes = precision == Precision::int8 || precision == Precision::int4;
    CHECK(from_some >= (planes ? 24u : 18u) && from_some <= (planes ? 60u : 18u));
  }
}

std::vector<int32_t> tokens_of(const std::vector<StepOutput>& outputs) {
  std::vector<int32_t> tokens;
  for (const StepOutput& output : outputs)
    for (const Drawn& drawn : output.drawn) tokens.push_back(drawn.token);
  return tokens;
}

// A step that another thread begins draws what `forward` does, from whatever part of the head; one that is given up, at
// whatever moment, leaves nothing.
void test_started_steps() {
  Config c = small(false);
  c.vocab = 40007, c.hidden = 96, c.layers = 6, c.moe_layers.assign(6, false), c.precision = Precision::int8;
  for (int threads : {1, 3}) {
    Model model(c, supported_isas().back(), threads);
    Filler().fill(model);
    CHECK_THROWS(model.result({}), std::invalid_argument);
    model.abandon();  // nothing
    for (int32_t n = 0; n < 48; ++n) {
      std::vector<StepInput> batch;
      std::vector<std::pair<size_t, Select>> late;
      for (int i = 0; i < 1 + n % 3; ++i) {
        batch.push_back(step(model.open(), some_ids(static_cast<size_t>(1 + n % 5)), 1));
        batch.back().output = Output::select;
        batch.back().select = some_select(n / 3 + (i == 1 ? 12 : 0), c.vocab);
      }
      const std::vector<int32_t> expected = tokens_of(model.forward(batch));
      for (StepInput& input : batch) model.truncate(input.sequence, 0);
      for (size_t i = 0; i < batch.size(); ++i)
        if ((n + static_cast<int32_t>(i)) % 4 != 0) {
          late.emplace_back(i, std::exchange(batch[i].select, Select()));
          batch[i].late = true;
        }
      if (n % 2 == 0) {
        model.start(batch);
        CHECK_THROWS(model.used_tokens(), std::invalid_argument);
        CHECK_THROWS(model.start(batch), std::invalid_argument);
        for (int i = 0; i < n * n; ++i) std::this_thread::yield();
        if (n % 4 == 0) model.abandon();
        else if (late.empty()) model.result({});
        else CHECK_THROWS(model.result({late.begin(), late.end() - 1}), std::invalid_argument);
        if (!late.empty() || n % 4 == 0) CHECK(model.used_tokens() == 0 && model.length(batch[0].sequence) == 0);
        for (StepInput& input : batch) model.truncate(input.sequence, 0);
      }
      model.start(batch);
      for (int i = 0; i < n * n; ++i) std::this_thread::yield();
      CHECK(tokens_of(model.result(late)) == expected);
      for (StepInput& input : batch) model.free(input.sequence);
      CHECK(model.used_tokens() == 0);
    }
    model.start({step(model.open(), {1}, 1)});  // and the model ends
  }
}

}  // namespace

int main() {
  test_started_steps();
  test_draws_from_some_logits();
  test_cache();
  test_cache_shares_to_the_last_page();
  test_sizes_that_do_not_fit_are_refused();
  test_scratch_is_known_beforehand();
  test_odd_shapes();
  test_calls_from_many_threads();
  for_each_isa([](const Kernels& kernels) {
    for (bool moe : {false, true})
      for (Precision precision : {Precision::fp32, Precision::bf16, Precision::int8})
        test_model(moe, precision, kernels.isa);
  });
  std::puts("model: ok");
}
