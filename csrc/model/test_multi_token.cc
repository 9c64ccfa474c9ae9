// Multi-token prediction on small random models: drafts depend on a sequence's tokens alone, steps on nothing of it, and
// what is refused or over leaves nothing behind.
#include <cstring>

#include "model/model.h"
#include "model/testing.h"

using namespace ernie;

namespace {

Config predicting(bool moe, Precision precision) {
  Config c = small(moe);
  c.multi_token = true;
  c.precision = precision;
  c.kv_precision = precision == Precision::fp32 ? KvPrecision::fp32 : precision == Precision::bf16 ? KvPrecision::bf16 : KvPrecision::int8;
  return c;
}

std::vector<int32_t> part(size_t first, size_t last) {
  const std::vector<int32_t> ids = some_ids(200);
  return {ids.begin() + static_cast<ptrdiff_t>(first), ids.begin() + static_cast<ptrdiff_t>(last)};
}

void feed(Model& model, int64_t s, size_t first, size_t last) {
  for (size_t at = first; at < last; at += 60) model.forward({step(s, part(at, std::min(at + 60, last)), 0)});
}

// However often the model has to be asked to catch up.
std::vector<int32_t> drafted(Model& model, int64_t s, size_t depth, int32_t token = 7) {
  for (int i = 0; i < 20; ++i) {
    const auto guesses = model.draft({{s, token}}, depth)[0];
    CHECK(guesses.empty() || guesses.size() == depth);
    if (!guesses.empty()) return guesses;
  }
  CHECK(false);
  return {};
}

std::vector<int32_t> fresh(Model& model, size_t length, size_t depth) {
  const int64_t s = model.open();
  feed(model, s, 0, length);
  const auto guesses = drafted(model, s, depth);
  model.free(s);
  return guesses;
}

void test_drafts(const Config& c, Isa isa, int threads, std::vector<std::vector<int32_t>>& first) {
  Model model(c, isa, threads);
  Filler().fill(model);
  std::vector<std::vector<int32_t>> found;
  for (size_t length : {1, 15, 16, 17, 32, 50, 150}) {
    const auto expected = fresh(model, length, 4);
    found.push_back(expected);
    // In pieces, with drafts in between that say something else.
    const int64_t s = model.open();
    feed(model, s, 0, (length + 1) / 2);
    drafted(model, s, 3, 9);
    feed(model, s, (length + 1) / 2, length);
    CHECK(drafted(model, s, 4) == expected && drafted(model, s, 4) == expected);
    // Forked, cut and parked; both sides go on.
    const int64_t child = model.fork(s, length);
    CHECK(drafted(model, child, 4) == expected);
    model.forward({step(child, {1, 2, 3}, 1)});
    drafted(model, child, 2);
    CHECK(drafted(model, s, 4) == expected);
    model.truncate(child, length);
    CHECK(drafted(model, child, 4) == expected);
    model.park(s);
    const int64_t again = model.fork(s, length);
    model.free(s);
    CHECK(drafted(model, again, 4) == expected);
    const auto both = model.draft({{child, 7}, {again, 7}}, 4);
    CHECK(both[0] == expected && both[1] == expected);
    model.free(child), model.free(again);
    CHECK(model.used_tokens() == 0);
  }
  if (first.empty()) first = found;
  CHECK(first == found);
}

// Sequences that share pages with positions nobody has computed yet: one does, the others follow.
void test_common_beginnings(const Config& c, Isa isa) {
  Model model(c, isa, 3);
  Filler().fill(model);
  const auto expected = fresh(model, 50, 3);
  const int64_t first = model.open();
  feed(model, first, 0, 50);
  const int64_t second = model.fork(first, 50), third = model.fork(first, 32);
  feed(model, third, 32, 50);
  const std::vector<DraftInput> batch = {{first, 7}, {second, 7}, {third, 7}};
  const auto now = model.draft(batch, 3), then = model.draft(batch, 3);
  CHECK(now[0] == expected && now[1].empty() && now[2].empty());
  for (const auto& guesses : then) CHECK(guesses == expected);
  const int64_t late = model.fork(first, 40);  // from what it is forked of is known where only another has it
  feed(model, late, 40, 50);
  for (const auto& guesses : model.draft({{late, 7}, {first, 7}}, 3)) CHECK(guesses == expected);
  for (int64_t s : {first, second, third, late}) model.free(s);
  CHECK(model.used_tokens() == 0);
}

// A step's bits are those of a model without, before and after drafts.
void test_steps(const Config& c, Isa isa) {
  Config without = c;
  without.multi_token = false;
  Model plain(without, isa, 2), model(c, isa, 2);
  Filler().fill(plain), Filler().fill(model);
  const int64_t a = plain.open(), b = model.open();
  for (size_t at = 0; at < 120; at += 20) {
    const auto expected = plain.forward({step(a, part(at, at + 20), 20)});
    const auto found = model.forward({step(b, part(at, at + 20), 20)});
    CHECK(std::memcmp(expected[0].values, found[0].values, 20 * c.vocab * sizeof(float)) == 0);
    drafted(model, b, 1 + at / 20);
    CHECK(model.length(b) == at + 20);
  }
}

void test_refusals() {
  Config c = predicting(true, Precision::fp32);
  Model model(c, Isa::portable, 2);
  CHECK_THROWS(model.draft({}, 1), std::runtime_error);
  Filler().fill(model);
  const int64_t s = model.open(), empty = model.open();
  feed(model, s, 0, 190);
  CHECK_THROWS(model.draft({{empty, 1}}, 1), std::invalid_argument);
  CHECK_THROWS(model.draft({{s + 100, 1}}, 1), std::invalid_argument);
  CHECK_THROWS(model.draft({{s, 1}, {s, 1}}, 1), std::invalid_argument);
  CHECK_THROWS(model.draft({{s, 50}}, 1), std::invalid_argument);
  CHECK_THROWS(model.draft({{s, -1}}, 1), std::invalid_argument);
  CHECK_THROWS(model.draft({{s, 1}}, 0), std::invalid_argument);
  CHECK_THROWS(model.draft({{s, 1}}, 10), std::invalid_argument);
  CHECK_THROWS(model.draft({{s, 1}}, ~size_t{0}), std::invalid_argument);
  CHECK(drafted(model, s, 9).size() == 9 && model.length(s) == 190);
  model.park(s);
  CHECK_THROWS(model.draft({{s, 1}}, 1), std::invalid_argument);
  model.free(s), model.free(empty);
  CHECK(model.used_tokens() == 0);
  c.multi_token = false;
  Model without(c, Isa::portable, 1);
  CHECK_THROWS(without.weights().set_multi_token_norms({}, {}), std::invalid_argument);
  Filler().fill(without);
  CHECK_THROWS(without.draft({}, 1), std::invalid_argument);
}

void test_memory() {
  Config c = predicting(false, Precision::fp32);
  c.max_pages = 4;
  Model model(c, Isa::portable, 2);
  Filler().fill(model);
  const int64_t s = model.open();
  feed(model, s, 0, 48);
  const int64_t other = model.fork(s, 48);
  CHECK(model.used_tokens() == 48);
  CHECK(drafted(model, s, 1).size() == 1 && model.used_tokens() == 64);  // the last page is its own now
  CHECK_THROWS(model.draft({{other, 1}}, 17), CapacityError);
  CHECK_THROWS(model.draft({{s, 1}, {other, 1}}, 2), CapacityError);
  CHECK(model.length(s) == 48 && model.length(other) == 48 && model.used_tokens() == 64);
  model.free(other);
  CHECK(drafted(model, s, 17).size() == 17 && model.used_tokens() == 48);
  model.free(s);
  CHECK(model.used_tokens() == 0);
}

void test_weights_are_needed() {
  const Config c = predicting(false, Precision::fp32);
  Model model(c, Isa::portable, 1);
  CHECK_THROWS(model.finish(), std::invalid_argument);
  std::vector<float> zeros(c.hidden * 2 * c.hidden);
  const Source wrong{zeros.data(), Dtype::fp32, 2 * c.hidden, c.hidden, static_cast<ptrdiff_t>(c.hidden), 1};
  CHECK_THROWS(model.weights().set_multi_token(wrong), std::invalid_argument);
}

}  // namespace

int main() {
  test_refusals();
  test_memory();
  test_weights_are_needed();
  for_each_isa([](const Kernels& kernels) {
    for (bool moe : {false, true})
      for (Precision precision : {Precision::fp32, Precision::bf16, Precision::int8, Precision::int4}) {
        const Config c = predicting(moe, precision);
        std::vector<std::vector<int32_t>> first;
        for (int threads : {1, 3}) test_drafts(c, kernels.isa, threads, first);
        test_common_beginnings(c, kernels.isa);
        test_steps(c, kernels.isa);
      }
  });
  std::puts("multi_token: ok");
}
