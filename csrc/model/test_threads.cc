// Models driven from several threads at once: every answer is the one that the text gives alone, and all pages come back.
// scripts/test --all runs this under the sanitizer that finds data races.
#include <cstring>
#include <thread>

#include "model/testing.h"

using namespace ernie;

namespace {

constexpr int kThreads = 4, kRounds = 150;
constexpr size_t kTexts = 3, kLength = 90, kShared = 40, kChunk = 12;

constexpr size_t kDepth = 3;

// A text, what the model answers after each of its ids, what it guesses after each where that is followed by the next,
// and a parked sequence of its beginning that anybody may fork.
struct Text {
  std::vector<int32_t> ids;
  std::vector<float> logits;
  std::vector<int32_t> drawn;
  std::vector<std::vector<int32_t>> guesses;
  int64_t beginning = 0;
};

Select some_select() {
  Select select;
  select.temperature = 0.8;
  select.seed = 7;
  return select;
}

StepInput drawing(int64_t sequence, std::vector<int32_t> ids, size_t rows) {
  StepInput input = step(sequence, std::move(ids), rows);
  input.output = Output::select;
  input.select = some_select();
  return input;
}

void add_guesses(Model& model, Text& text) {
  const int64_t s = model.open();
  for (size_t i = 0; i + 1 < kLength; ++i) {
    model.forward({step(s, {text.ids[i]}, 0)});
    text.guesses.push_back(model.draft({{s, text.ids[i + 1]}}, kDepth)[0]);
  }
  model.free(s);
}

Text make_text(Model& model, int number) {
  Text text;
  const int64_t s = model.open(), t = model.open();
  for (size_t i = 0; i < kLength; ++i) text.ids.push_back(static_cast<int32_t>((i * 37 + number * 11) % model.config().vocab));
  for (size_t at = 0; at < kLength; at += 30) {
    const std::vector<int32_t> part(text.ids.begin() + at, text.ids.begin() + at + 30);
    const auto outputs = model.forward({step(s, part, 30), drawing(t, part, 30)});
    text.logits.insert(text.logits.end(), outputs[0].values, outputs[0].values + 30 * model.config().vocab);
    for (const Drawn& drawn : outputs[1].drawn) text.drawn.push_back(drawn.token);
  }
  model.free(t);
  text.beginning = model.fork(s, kShared);
  model.park(text.beginning);
  model.free(s);
  if (model.config().multi_token) add_guesses(model, text);
  return text;
}

// One thread's sequences, each a beginning of one of the texts.
class Caller {
 public:
  // One that is `alone` with its model starts steps and goes on with them, or gives them up.
  Caller(Model& model, const std::vector<Text>& texts, int number, bool alone = false)
      : model_(model), texts_(texts), random_(number), alone_(alone) {}

  void run() {
    for (int i = 0; i < kRounds; ++i) {
      try {
        act();
      } catch (const CapacityError&) {  // others hold the rest
        if (!mine_.empty()) drop(below(mine_.size()));
      }
    }
    while (!mine_.empty()) drop(0);
  }

 private:
  struct Mine {
    int64_t id;
    size_t text, length;
  };

  void act() {
    switch (below(10)) {
      case 0:
        mine_.push_back({model_.open(), below(kTexts), 0});
        break;
      case 1: {
        const size_t text = below(kTexts), length = 1 + below(kShared);
        mine_.push_back({model_.fork(texts_[text].beginning, length), text, length});
        break;
      }
      case 2:
        if (!mine_.empty()) fork_and_park(mine_[below(mine_.size())]);
        break;
      case 3:
        if (!mine_.empty()) truncate(mine_[below(mine_.size())]);
        break;
      case 4:
        if (!mine_.empty()) drop(below(mine_.size()));
        break;
      case 5:
        CHECK(model_.free_tokens() <= model_.config().max_pages * 16);
        CHECK(model_.used_tokens() > 0);  // the beginnings
        break;
      case 6:
      case 7:
        if (model_.config().multi_token) draft();
        break;
      default:
        advance();
    }
  }

  void fork_and_park(const Mine& from) {
    const int64_t kept = model_.fork(from.id, from.length);
    model_.park(kept);
    try {
      const int64_t again = model_.fork(kept, from.length);
      mine_.push_back({again, from.text, from.length});
    } catch (const CapacityError&) {  // nothing else to give back here
    }
    model_.free(kept);
  }

  void truncate(Mine& mine) {
    mine.length = below(mine.length + 1);
    model_.truncate(mine.id, mine.length);
    CHECK(model_.length(mine.id) == mine.length);
  }

  void drop(size_t index) {
    model_.free(mine_[index].id);
    mine_.erase(mine_.begin() + static_cast<ptrdiff_t>(index));
  }

  // A few ids more for each sequence that is not complete, and a look at every answer.
  void advance() {
    std::vector<StepInput> batch;
    std::vector<Mine*> grown;
    for (Mine& mine : mine_) {
      const std::vector<int32_t>& ids = texts_[mine.text].ids;
      const size_t count = std::min(1 + below(kChunk), ids.size() - mine.length);
      if (count == 0) continue;
      const std::vector<int32_t> more(ids.begin() + static_cast<ptrdiff_t>(mine.length),
                                      ids.begin() + static_cast<ptrdiff_t>(mine.length + count));
      batch.push_back(below(2) ? step(mine.id, more, count) : drawing(mine.id, more, count));
      grown.push_back(&mine);
    }
    const auto outputs = alone_ ? started(batch) : model_.forward(batch);
    for (size_t i = 0; i < batch.size(); ++i) check(*grown[i], batch[i], outputs[i]);
  }

  std::vector<StepOutput> started(std::vector<StepInput> batch) {
    std::vector<std::pair<size_t, Select>> late;
    while (below(3) == 0) {
      model_.start(batch);
      wait();
      model_.abandon();
    }
    for (size_t i = 0; i < batch.size(); ++i)
      if (batch[i].output == Output::select && below(2)) batch[i].late = true, late.emplace_back(i, batch[i].select);
    model_.start(batch);
    wait();
    return model_.result(std::move(late));
  }

  void wait() {
    for (size_t left = below(400); left > 0; --left) std::this_thread::yield();
  }

  void check(Mine& mine, const StepInput& input, const StepOutput& output) const {
    const size_t vocab = model_.config().vocab, rows = input.rows;
    const Text& text = texts_[mine.text];
    if (input.output == Output::logits)
      CHECK(std::memcmp(output.values, &text.logits[mine.length * vocab], rows * vocab * sizeof(float)) == 0);
    for (size_t row = 0; row < output.drawn.size(); ++row) CHECK(output.drawn[row].token == text.drawn[mine.length + row]);
    mine.length += rows;
  }

  // Guesses for all that can have some; those of one text share pages, and a prompt may take several calls.
  void draft() {
    std::vector<DraftInput> batch;
    std::vector<const Mine*> asked;
    for (const Mine& mine : mine_) {
      if (mine.length == 0 || mine.length >= kLength) continue;
      batch.push_back({mine.id, texts_[mine.text].ids[mine.length]});
      asked.push_back(&mine);
    }
    const auto guesses = model_.draft(batch, kDepth);
    for (size_t i = 0; i < batch.size(); ++i)
      CHECK(guesses[i].empty() || guesses[i] == texts_[asked[i]->text].guesses[asked[i]->length - 1]);
  }

  size_t below(size_t limit) { return std::uniform_int_distribution<size_t>(0, limit - 1)(random_); }

  Model& model_;
  const std::vector<Text>& texts_;
  std::mt19937 random_;
  bool alone_;
  std::vector<Mine> mine_;
};

Config tight(bool moe) {
  Config c = small(moe);
  c.multi_token = moe;
  c.precision = Precision::int8;
  c.max_sequences = 10, c.max_pages = 24;  // both run out
  c.max_step_tokens = kChunk * c.max_sequences;
  return c;
}

}  // namespace

int main() {
  // They share the threads of one pool.
  const Isa isa = supported_isas().back();
  constexpr int kModels = 4;  // two with callers of their own
  Model models[] = {{tight(false), isa, 2}, {tight(true), isa, 2}, {tight(false), isa, 2}, {tight(true), isa, 1}};
  std::vector<Text> texts[kModels];
  for (int i = 0; i < kModels; ++i) {
    Filler().fill(models[i]);
    for (size_t text = 0; text < kTexts; ++text) texts[i].push_back(make_text(models[i], static_cast<int>(text)));
  }
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i)
    threads.emplace_back([&, i] { Caller(models[i % 2], texts[i % 2], i).run(); });
  for (int i = 2; i < kModels; ++i) threads.emplace_back([&, i] { Caller(models[i], texts[i], i, true).run(); });
  threads.emplace_back([&] {
    for (int i = 0; i < kRounds; ++i) models[i % 2].profile(i % 3 != 0);
  });
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < kModels; ++i) {
    for (const Text& text : texts[i]) models[i].free(text.beginning);
    CHECK(models[i].used_tokens() == 0);
  }
  std::puts("threads: ok");
}
