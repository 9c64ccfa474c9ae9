// Draws that need some logits alone. Where a mask allows few ids, only their panels are multiplied, whatever the head is.
// Elsewhere, where the best logits are all that counts: the upper plane of a nested head bounds every panel's logits, and
// only the panels whose bounds reach the best are multiplied as a whole. Their logits have the bits of the whole head's,
// so the draw is the same wherever the bounds hold; that they do not is seen where an exact product leaves them.
#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <functional>

#include "model/step.h"

namespace ernie {
namespace {

constexpr size_t kMostBest = 256;   // beyond, too many panels would be kept
constexpr size_t kFewIds = 2048;    // few enough to sort them all
constexpr size_t kFewPanels = 8;    // a part of the panels that is few: one in so many

// How many of the best logits a draw looks at; 0 if at more than that.
size_t best_wanted(const Select& select) {
  if (select.greedy()) return 1;
  return select.top_k <= kMostBest ? select.top_k : 0;
}

// Which of a panel's ids may be drawn, a bit each.
uint32_t allowed_lanes(const Select& select, size_t panel, size_t limit) {
  const size_t first = panel * kPanelRows;
  if (first >= limit) return 0;
  uint32_t lanes = limit - first < kPanelRows ? (1u << (limit - first)) - 1 : (1u << kPanelRows) - 1;
  if (!select.mask.empty()) lanes &= select.mask[first / 32] >> first % 32;
  return lanes;
}

// Whether the mask leaves so few ids, in so few panels, that no bounds are needed.
bool allows_few(const Select& select, size_t panels, size_t limit) {
  if (select.mask.empty()) return false;
  size_t kept = 0, ids = 0;
  for (size_t p = 0; p < panels; ++p) {
    const uint32_t lanes = allowed_lanes(select, p, limit);
    kept += lanes != 0;
    ids += static_cast<size_t>(std::popcount(lanes));
    if (ids > kFewIds || kept > panels / kFewPanels) return false;
  }
  return true;
}

// A bound that `best` logits reach at least: each of that many panels holds one.
float reached(const std::vector<float>& lower, size_t best, std::vector<float>& sorted) {
  sorted = lower;
  if (best > lower.size()) return -INFINITY;
  const auto at = sorted.begin() + static_cast<ptrdiff_t>(best - 1);
  std::nth_element(sorted.begin(), at, sorted.end(), std::greater<float>());
  return *at;
}

}  // namespace

bool StepRun::draw_from_bounds(const std::vector<StepInput>& batch, const std::vector<AnswerRow>& rows, size_t count,
                               const Rows& input, std::vector<StepOutput>& outputs) {
  const Matrix& head = weights_.head().view;
  if (config_.whole_head || count > Scratch::kBoundRows) return false;
  std::vector<size_t> bounded;
  for (size_t i = 0; i < count; ++i) {
    const StepInput& step = batch[rows[i].step];
    if (step.output != Output::select || !step.select.plain()) return false;
    if (allows_few(step.select, head.panels(), step.select.limit(config_.vocab))) continue;
    if (!is_nested(head.precision) || best_wanted(step.select) == 0) return false;
    bounded.push_back(i);
  }
  bound_head(batch, rows, bounded, input);
  const std::vector<KeptPanel> kept = keep_panels(batch, rows, count, bounded);
  mark(Part::head, bounded.empty() ? 0 : head.panels() * head.panel_bytes);
  if (kept.empty() || !multiply_kept(kept, input)) return false;
  mark(Part::head, kept.size() * (head.panel_bytes + head.low_bytes));
  draw_kept(batch, rows, count, kept, outputs);
  mark(Part::select);
  return true;
}

void StepRun::bound_head(const std::vector<StepInput>& batch, const std::vector<AnswerRow>& rows,
                         const std::vector<size_t>& bounded, const Rows& input) {
  const Matrix& head = weights_.head().view;
  if (bounded.empty()) return;
  for (size_t i : bounded) nested_spread(head, input, i, scratch_.spread + i * head.groups());
  const size_t each = scratch_.panels_per_task();
  pool_.run_neighbours(div_up(head.panels(), each), [&](size_t task, int) {
    const size_t panel = task * each;
    for (size_t i : bounded)
      kernels_.bound(head, input, scratch_.spread + i * head.groups(), i, panel, std::min(each, head.panels() - panel),
                     batch[rows[i].step].select.limit(config_.vocab), scratch_.lower + i * head.panels() + panel,
                     scratch_.upper + i * head.panels() + panel);
  });
}

// Nothing if a bound is no number, which the whole head will tell, or if so many are kept that it costs less.
std::vector<StepRun::KeptPanel> StepRun::keep_panels(const std::vector<StepInput>& batch,
                                                     const std::vector<AnswerRow>& rows, size_t count,
                                                     const std::vector<size_t>& bounded) {
  const size_t panels = weights_.head().view.panels();
  std::vector<KeptPanel> kept;
  std::vector<float> lower(panels), upper(panels), sorted;
  for (size_t i = 0; i < count; ++i) {
    const Select& select = batch[rows[i].step].select;
    const bool is_bounded = std::find(bounded.begin(), bounded.end(), i) != bounded.end();
    if (!bound_allowed(select, i, is_bounded, lower, upper)) return {};
    const float least = is_bounded ? reached(lower, best_wanted(select), sorted) : -INFINITY;
    const size_t before = kept.size();
    for (size_t p = 0; p < panels; ++p) {
      if (!(upper[p] >= least && upper[p] > -INFINITY)) continue;
      if (kept.size() == panels / 4) return {};
      kept.push_back({i, p, rows[i].logits + (kept.size() - before) * kPanelRows, is_bounded});
    }
    if (kept.size() == before) return {};
  }
  return kept;
}

// Bounds of the largest logit that may be drawn in each panel; false if one is no number.
bool StepRun::bound_allowed(const Select& select, size_t row, bool is_bounded, std::vector<float>& lower,
                            std::vector<float>& upper) const {
  const size_t panels = lower.size(), limit = select.limit(config_.vocab);
  for (size_t p = 0; p < panels; ++p) {
    const uint32_t lanes = allowed_lanes(select, p, limit);
    lower[p] = -INFINITY;
    upper[p] = lanes == 0 ? -INFINITY : INFINITY;
    if (!is_bounded) continue;
    const float least = scratch_.lower[row * panels + p], most = scratch_.upper[row * panels + p];
    if (std::isnan(most)) return false;
    if (lanes != 0) upper[p] = most;
    // The bound is reached by one of all ids below the limit, and it is not known which.
    if (select.mask.empty() || lanes == (1u << kPanelRows) - 1) lower[p] = least;
  }
  return true;
}

// False if some logits are out of their bounds.
bool StepRun::multiply_kept(const std::vector<KeptPanel>& kept, const Rows& input) {
  const Matrix& head = weights_.head().view;
  std::atomic<bool> held{true};
  pool_.run(kept.size(), [&](size_t n, int thread) {
    const KeptPanel& panel = kept[n];
    kernels_.linear(head, input, panel.row, 1, panel.panel, 1, head.panels(), panel.logits, kPanelRows, scratch_.linear(thread));
    if (!panel.bounded) return;
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
    for (; n < kept.size() && kept[n].row == i; ++n) {
      uint32_t lanes = allowed_lanes(select, kept[n].panel, limit);
      for (; lanes != 0; lanes &= lanes - 1) {
        const auto r = static_cast<size_t>(std::countr_zero(lanes));
        candidates.push_back({kept[n].logits[r], static_cast<int32_t>(kept[n].panel * kPanelRows + r)});
      }
    }
    outputs[row.step].drawn[row.index].token =
        select_candidates(kernels_.select, select, candidates, positions_[row.token] + 1, scratch_.select(0));
  }
}

}  // namespace ernie
