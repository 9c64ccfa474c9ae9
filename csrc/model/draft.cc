// Drafts: what the predicting layer guesses after a token that is drawn and not computed yet.
#include <algorithm>
#include <numeric>
#include <set>
#include <stdexcept>
#include <utility>

#include "base/float_mode.h"
#include "model/step.h"

namespace ernie {

void Model::check(const std::vector<DraftInput>& batch, size_t depth) const {
  if (!config_.multi_token) throw std::invalid_argument("the model was made without multi-token prediction");
  if (depth == 0) throw std::invalid_argument("drafts have a depth of at least 1");
  if (batch.size() > config_.max_step_tokens) throw std::invalid_argument("too many sequences in one call");
  std::set<int64_t> once;
  for (const DraftInput& draft : batch) {
    const Sequence& sequence = cache_.at(draft.sequence);
    if (sequence.parked) throw std::invalid_argument("a parked sequence takes no tokens; fork it");
    if (!once.insert(draft.sequence).second) throw std::invalid_argument("a sequence is twice in one call");
    if (sequence.length == 0) throw std::invalid_argument("an empty sequence has nothing to draft from");
    if (draft.token < 0 || static_cast<size_t>(draft.token) >= config_.vocab)
      throw std::invalid_argument("token id " + std::to_string(draft.token) + " is not in the vocabulary");
    if (depth >= config_.max_context || sequence.length + 1 + depth > config_.max_context)
      throw std::invalid_argument("the context is too short");
  }
}

std::vector<std::vector<int32_t>> Model::draft(const std::vector<DraftInput>& batch, size_t depth) {
  auto guard = lock();
  const DefaultFloatMode mode;
  check(batch, depth);
  std::vector<std::vector<int32_t>> guesses(batch.size());
  if (batch.empty()) return guesses;
  std::vector<KvCache::Growth> growth;  // no guess is appended, but all but the last have keys and values for a while
  for (const DraftInput& draft : batch) growth.push_back({draft.sequence, depth - 1});
  cache_.extend(growth);
  const auto shrink = [&] {
    for (const auto& grown : growth) cache_.truncate(grown.id, cache_.at(grown.id).length - grown.tokens);
  };
  try {
    guess(batch, depth, guesses);
  } catch (...) {
    shrink();
    throw;
  }
  shrink();
  return guesses;
}

// The next positions of a sequence, from `first` on, with the token that follows each.
void Model::Round::add(size_t owner, int64_t sequence, size_t first, std::vector<int32_t> following, bool guesses) {
  StepInput input;
  input.sequence = sequence;
  input.ids = std::move(following);
  input.rows = guesses ? 1 : 0;
  input.output = guesses ? Output::select : Output::none;
  inputs.push_back(std::move(input));
  firsts.push_back(first), owners.push_back(owner);
}

// Sequences with a common beginning have its pages in common, and what one of them has computed there the others need not.
void Model::share_predicted(const std::vector<DraftInput>& batch, const std::vector<size_t>& lengths) {
  for (size_t i = 0; i < batch.size(); ++i)
    for (const DraftInput& other : batch) {
      const Sequence &to = cache_.at(batch[i].sequence), &from = cache_.at(other.sequence);
      if (from.predicted <= to.predicted) continue;
      const size_t same = kPageTokens * cache_.shared_pages(to, from, to.predicted / kPageTokens);
      const size_t predicted = std::min({from.predicted, same, lengths[i] - 1});
      if (predicted > to.predicted) cache_.set_predicted(batch[i].sequence, predicted);
    }
}

// Whether one of two sequences would write where the other reads or writes, beginning at these positions.
bool Model::collide(const Sequence& a, size_t a_first, const Sequence& b, size_t b_first) {
  const size_t page = std::min(a_first, b_first) / kPageTokens;
  return page < a.pages.size() && page < b.pages.size() && a.pages[page] == b.pages[page];
}

// Positions that are new come in one pass; the last of a sequence guesses. Sequences with least to do go first, so that a
// long prompt holds nobody up. Of those that would compute a common beginning the first does, and the others wait for it.
Model::Round Model::catch_up(const std::vector<DraftInput>& batch, const std::vector<size_t>& lengths) const {
  const auto missing = [&](size_t i) { return lengths[i] - cache_.at(batch[i].sequence).predicted; };
  std::vector<size_t> order(batch.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return missing(a) < missing(b); });
  Round round;
  size_t left = config_.max_step_tokens;
  for (size_t i : order) {
    const Sequence& sequence = cache_.at(batch[i].sequence);
    const size_t count = std::min(missing(i), left), first = sequence.predicted;
    if (count == 0) break;
    bool waits = false;
    for (size_t n = 0; n < round.inputs.size(); ++n)
      waits = waits || collide(sequence, first, cache_.at(round.inputs[n].sequence), round.firsts[n]);
    if (waits) continue;
    left -= count;
    const bool all = count == missing(i);
    const auto after = sequence.ids.begin() + static_cast<ptrdiff_t>(first + 1);
    std::vector<int32_t> following(after, after + static_cast<ptrdiff_t>(count - (all ? 1 : 0)));
    if (all) following.push_back(batch[i].token);
    round.add(i, batch[i].sequence, first, std::move(following), all);
  }
  return round;
}

void Model::guess(const std::vector<DraftInput>& batch, size_t depth, std::vector<std::vector<int32_t>>& guesses) {
  std::vector<size_t> lengths;
  for (const DraftInput& draft : batch) lengths.push_back(cache_.at(draft.sequence).length - (depth - 1));
  share_predicted(batch, lengths);
  Round round = catch_up(batch, lengths);
  run(round, guesses);
  // The position of the last token is computed again: what comes after it need not be what was said.
  for (size_t n = 0; n < round.inputs.size(); ++n)
    cache_.set_predicted(round.inputs[n].sequence,
                         std::min(round.firsts[n] + round.inputs[n].ids.size(), lengths[round.owners[n]] - 1));
  for (size_t further = 1; further < depth; ++further) {
    round = Round();
    for (size_t i = 0; i < batch.size(); ++i)
      if (!guesses[i].empty())
        round.add(i, batch[i].sequence, lengths[i] + further - 1, {guesses[i].back()}, true);
    if (!round.inputs.empty()) run(round, guesses);
  }
}

void Model::run(const Round& round, std::vector<std::vector<int32_t>>& guesses) {
  std::vector<StepOutput> outputs = allocate(round.inputs);
  StepRun(config_, kernels_, *pool_, weights_, cache_, *scratch_, nullptr).predict(round.inputs, round.firsts, outputs);
  for (size_t n = 0; n < round.inputs.size(); ++n)
    if (round.inputs[n].rows > 0) guesses[round.owners[n]].push_back(outputs[n].drawn[0].token);
}

}  // namespace ernie
