// Draws that need the best logits alone: the upper plane of a nested head bounds every panel's logits, and only the panels
// whose bounds reach the best are multiplied as a whole. Their logits have the bits of the whole head's, so the draw is
// the same wherever the bounds hold; that they do not is seen where an exact product leaves them.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>

#include "model/step.h"

namespace ernie {
namespace {

constexpr size_t kMostBest = 256;  // beyond, too many panels would be kept

// How many of the best logits a draw looks at; 0 if at more than that.
size_t best_wanted(const StepInput& step) {
  const Select& select = step.select;
  if (step.output != Output::select || !select.plain()) return 0;
  if (select.greedy()) return 1;
  return select.top_k <= kMostBest ? select.top_k : 0;
}

// A bound that `best` logits reach at least: each of that many panels holds one.
float reached(const float* lower, size_t panels, size_t best, std::vector<float>& sorted) {
  sorted.assign(lower, lower + panels);
  if (best > panels) return -INFINITY;
  const auto at = sorted.begin() + static_cast<ptrdiff_t>(best - 1);
  std::nth_element(sorted.begin(), at, sorted.end(), std::greater<float>());
  return *at;
}

}  // namespace

bool StepRun::draw_from_bounds(const std::vector<StepInput>& batch, const std::vector<AnswerRow>& rows, size_t count,
                               const Rows& input, std::vector<StepOutput>& outputs) {
  const Matrix& head = weights_.head().view;
  if (!is_nested(head.precision) || config_.whole_head || count > Scratch::kBoundRows) return false;
  for (size_t i = 0; i < count; ++i)
    if (best_wanted(batch[rows[i].step]) == 0) return false;
  bound_head(batch, rows, count, input);
  const std::vector<KeptPanel> kept = keep_panels(batch, rows, count);
  mark(Part::head, head.panels() * head.panel_bytes);
  if (kept.empty() || !multiply_kept(kept, input)) return false;
  mark(Part::head, kept.size() * (head.panel_bytes + head.low_bytes));
  draw_kept(batch, rows, count, kept, outputs);
  mark(Part::select);
  return true;
}

void StepRun::bound_head(const std::vector<StepInput>& batch, const std::vector<AnswerRow>& rows, size_t count,
                         const Rows& input) {
  const Matrix& head = weights_.head().view;
  for (size_t i = 0; i < count; ++i) nested_spread(head, input, i, scratch_.spread + i * head.groups());
  const size_t each = scratch_.panels_per_task();
  pool_.run(div_up(head.panels(), each), [&](size_t task, int) {
    const size_t panel = task * each;
    const size_t next = panel + static_cast<size_t>(pool_.threads()) * each;
    for (size_t i = 0; i < count; ++i)
      kernels_.bound(head, input, scratch_.spread + i * head.groups(), i, panel, std::min(each, head.panels() - panel),
                     i + 1 < count ? head.panels() : next, batch[rows[i].step].select.limit(config_.vocab), scratch_.lower + i * head.panels() + panel,
                     scratch_.upper + i * head.panels() + panel);
  });
}

// Nothing if a bound is no number, which the whole head will tell, or if so many are kept that it costs less.
std::vector<StepRun::KeptPanel> StepRun::keep_panels(const std::vector<StepInput>& batch,
                                                     const std::vector<AnswerRow>& rows, size_t count) {
  const size_t panels = weights_.head().view.panels();
  std::vector<KeptPanel> kept;
  std::vector<float> sorted;
  for (size_t i = 0; i < count; ++i) {
    const float* lower = scratch_.lower + i * panels;
    const float* upper = scratch_.upper + i * panels;
    if (std::any_of(upper, upper + panels, [](float bound) { return std::isnan(bound); })) return {};
    const float least = reached(lower, panels, best_wanted(batch[rows[i].step]), sorted);
    const size_t before = kept.size();
    for (size_t p = 0; p < panels; ++p) {
      if (!(upper[p] >= least && upper[p] > -INFINITY)) continue;
      if (kept.size() == panels / 4) return {};
      kept.push_back({i, p, rows[i].logits + (kept.size() - before) * kPanelRows});
    }
    if (kept.size() == before) return {};
  }
  return kept;
}

// False if some logits are out of their bounds.
bool StepRun::multiply_kept(const std::vector<KeptPanel>& kept, const Rows& input) {
  const Matrix& head = weights_.head().view;
  std::atomic<bool> held{true};
  pool_.run(kept.size(), [&](size_t n, int thread) {
    const KeptPanel& panel = kept[n];
    kernels_.linear(head, input, panel.row, 1, panel.panel, 1, head.panels(), panel.logits, kPanelRows, scratch_.linear(thread));
    const size_t at = panel.row * head.panels() + panel.panel;
    const float top = *std::max_element(panel.logits, panel.logits + kPanelRows);
    // The largest of all lanes may be above the largest that counts, where the vocabulary ends inside a panel.
    if (panel.panel + 1 < head.panels() && !(top <= scratch_.upper[at] && top >= scratch_.lower[at])) held = false;
  });
  return held;
}

void StepRun::draw_kept(const std::vector<StepInput>& batch, const std::vector<AnswerRow>& rows, size_t count,
                        const std::vector<KeptPanel>& kept, std::vector<StepOutput>& outputs) {
  std::vector<Candidate> candidates;
  size_t n = 0;
  for (size_t i = 0; i < count; ++i) {
    const AnswerRow& row = rows[i];
    const Select& select = batch[row.step].select;
    const size_t limit = select.limit(config_.vocab);
    candidates.clear();
    for (; n < kept.size() && kept[n].row == i; ++n)
      for (size_t r = 0; r < kPanelRows && kept[n].panel * kPanelRows + r < limit; ++r)
        candidates.push_back({kept[n].logits[r], static_cast<int32_t>(kept[n].panel * kPanelRows + r)});
    outputs[row.step].drawn[row.index].token =
        select_candidates(kernels_.select, select, candidates, positions_[row.token] + 1, scratch_.select(0));
  }
}

}  // namespace ernie
