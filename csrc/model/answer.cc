// What a step gives back: hidden states, logits, or tokens drawn from them.
#include <algorithm>
#include <cstring>

#include "model/step.h"

namespace ernie {

void StepRun::answer(const std::vector<StepInput>& batch, std::vector<StepOutput>& outputs) {
  std::vector<AnswerRow> rows;
  size_t token = 0;
  for (size_t s = 0; s < batch.size(); ++s) {
    token += batch[s].ids.size();
    if (batch[s].output == Output::none) continue;
    for (size_t r = 0; r < batch[s].rows; ++r) {
      float* values = outputs[s].values;
      const bool hidden = batch[s].output == Output::hidden;
      rows.push_back({token - batch[s].rows + r, hidden ? values + r * config_.hidden : nullptr,
                      hidden ? nullptr : values + r * config_.vocab, s, r});
    }
  }
  // Rows that want logits go first, so that the head multiplies those alone.
  const auto middle = std::stable_partition(rows.begin(), rows.end(), [](const AnswerRow& row) { return row.logits != nullptr; });
  const size_t with_logits = static_cast<size_t>(middle - rows.begin());
  const Matrix& head = weights_.head().view;
  const Rows input = grouped(scratch_.input, head);
  const size_t width = config_.padded_hidden();
  for_each(rows.size(), [&](size_t i) {
    float* row = scratch_.norm + i * width;
    kernels_.rms_norm(scratch_.x + rows[i].token * width, weights_.final_norm(), config_.hidden, config_.eps, row);
    if (rows[i].hidden != nullptr) {
      std::memcpy(rows[i].hidden, row, config_.hidden * sizeof(float));
    } else {
      kernels_.prepare(head, row, 0, width, input, i);
    }
  });
  if (with_logits == 0 || draw_from_bounds(batch, rows, with_logits, input, outputs)) return;
  multiply(head, input, with_logits, scratch_.panels_per_task(),
           [&](size_t i, size_t panel, size_t panels, const float* tile) {
             const size_t first = panel * kPanelRows;
             const size_t count = std::min(panels * kPanelRows, config_.vocab - first);
             std::memcpy(rows[i].logits + first, tile, count * sizeof(float));
           });
  mark(Part::head, weights_.head().bytes());
  pool_.run(with_logits, [&](size_t i, int thread) {
    const AnswerRow& row = rows[i];
    if (batch[row.step].output != Output::select) return;
    Drawn drawn = select_row(kernels_.select, batch[row.step].select, row.logits, config_.vocab,
                             positions_[row.token] + 1, scratch_.select(thread));
    outputs[row.step].drawn[row.index] = std::move(drawn);
  });
  mark(Part::select);
}

}  // namespace ernie
