// The feed-forward network of a mixture-of-experts layer. Each expert's tokens are multiplied together; a token's
// experts are summed in ascending order of their index.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "model/step.h"

namespace ernie {

void StepRun::experts_ffn(const Layer& layer) {
  const bool shared = config_.shared_experts > 0;
  const Matrix& gate_up = shared ? layer.ffn.gate_up.view : layer.experts[0].gate_up.view;
  norm_rows(reinterpret_cast<const float*>(layer.post_norm.data()), gate_up);
  route(layer);
  sort_slots();
  gather_slots(layer.experts[0].gate_up.view);
  mark(Part::router, layer.router.bytes());

  const Matrix& first_down = layer.experts[0].down.view;
  const Rows inner = grouped(scratch_.slot_inner, first_down);
  const Rows input = grouped(scratch_.slot_input, layer.experts[0].gate_up.view);
  for_each_expert_task(
      layer.experts[0].gate_up.view.panels(), scratch_.panels_per_task(),
      [&](size_t expert, size_t panel, size_t panels, size_t first, size_t rows, int thread) {
        const FeedForward& ffn = layer.experts[expert];
        multiply_block(ffn.gate_up.view, input, first, rows, panel, panels, panel + panels, thread,
                       [&](size_t row, const float* tile) {
                         write_inner(ffn.down.view, inner, row, panel, panels, tile);
                       });
      });
  mark(Part::experts_gate_up, active_experts() * layer.experts[0].gate_up.bytes());
  const size_t width = config_.padded_hidden();
  for_each_expert_task(
      first_down.panels(), 8, [&](size_t expert, size_t panel, size_t panels, size_t first, size_t rows, int thread) {
        multiply_block(layer.experts[expert].down.view, inner, first, rows, panel, panels, panel + panels, thread,
                       [&](size_t row, const float* tile) {
                         std::memcpy(scratch_.slot_out + row * width + panel * kPanelRows, tile,
                                     panels * kPanelRows * sizeof(float));
                       });
      });
  mark(Part::experts_down, active_experts() * layer.experts[0].down.bytes());
  combine_slots();
  mark(Part::combine);
  if (shared) dense_ffn(layer.ffn);
}

size_t StepRun::active_experts() const {
  size_t count = 0;
  for (size_t e = 0; e < config_.experts; ++e) count += expert_begin_[e + 1] > expert_begin_[e];
  return count;
}

void StepRun::route(const Layer& layer) {
  slots_.resize(tokens_ * config_.experts_per_token);
  const size_t stride = layer.router.view.rows;
  constexpr size_t kTokensAtOnce = 16;
  Rows rows;
  rows.data = reinterpret_cast<uint8_t*>(scratch_.norm);
  rows.stride = config_.padded_hidden() * sizeof(float);
  const auto block = [&](size_t first, int thread) {
    const size_t count = std::min(kTokensAtOnce, tokens_ - first);
    const size_t panels = layer.router.view.panels();
    kernels_.linear(layer.router.view, rows, first, count, 0, panels, panels, scratch_.router + first * stride,
                    stride, scratch_.linear(thread));
    for (size_t t = first; t < first + count; ++t) choose(layer, t);
  };
  pool_.run(div_up(tokens_, kTokensAtOnce), [&](size_t i, int thread) { block(i * kTokensAtOnce, thread); });
}

// Softmax over all experts; the k with the largest probability + bias, lower index first among equals; their
// probabilities divided by their sum.
void StepRun::choose(const Layer& layer, size_t token) {
  const size_t experts = config_.experts;
  const size_t k = config_.experts_per_token;
  float* p = scratch_.router + token * layer.router.view.rows;
  const float top = *std::max_element(p, p + experts);
  float sum = 0.0f;
  for (size_t e = 0; e < experts; ++e) sum += p[e] = std::exp(p[e] - top);
  for (size_t e = 0; e < experts; ++e) p[e] /= sum;
  Slot* chosen = slots_.data() + token * k;
  size_t held = 0;
  // Insertion into a short list sorted by score; a later expert moves ahead only if it is strictly better.
  const auto score = [&](uint32_t e) { return p[e] + layer.router_bias[e]; };
  for (uint32_t e = 0; e < experts; ++e) {
    size_t at = held;
    while (at > 0 && score(e) > score(chosen[at - 1].expert)) --at;
    if (at >= k) continue;
    if (held < k) ++held;
    for (size_t i = held - 1; i > at; --i) chosen[i] = chosen[i - 1];
    chosen[at] = {static_cast<uint32_t>(token), e, p[e]};
  }
  std::sort(chosen, chosen + k, [](const Slot& a, const Slot& b) { return a.expert < b.expert; });
  float weights = 0.0f;
  for (size_t i = 0; i < k; ++i) weights += chosen[i].weight;
  weights = std::max(weights, config_.norm_min);
  for (size_t i = 0; i < k; ++i) chosen[i].weight /= weights;
}

// Counting sort of the slots by expert; within an expert by token.
void StepRun::sort_slots() {
  expert_begin_.assign(config_.experts + 1, 0);
  for (const Slot& slot : slots_) ++expert_begin_[slot.expert + 1];
  for (size_t e = 0; e < config_.experts; ++e) expert_begin_[e + 1] += expert_begin_[e];
  std::vector<uint32_t> next(expert_begin_.begin(), expert_begin_.end() - 1);
  order_.resize(slots_.size());
  place_.resize(slots_.size());
  for (uint32_t i = 0; i < slots_.size(); ++i) {
    place_[i] = next[slots_[i].expert]++;
    order_[place_[i]] = i;
  }
}

// Copies each slot's prepared row, so that an expert's rows lie together.
void StepRun::gather_slots(const Matrix& w) {
  const Rows from = grouped(scratch_.input, w);
  const Rows to = grouped(scratch_.slot_input, w);
  for_each(slots_.size(), [&](size_t i) {
    const size_t token = slots_[order_[i]].token;
    std::memcpy(to.data + i * to.stride, from.data + token * from.stride, std::min(to.stride, from.stride));
    if (!is_quantised(w.precision)) return;
    std::memcpy(to.fine + i * to.fine_stride, from.fine + token * from.fine_stride, from.fine_stride * sizeof(int32_t));
    std::memcpy(to.exact + i * kMaxExact, from.exact + token * kMaxExact, w.exact_count * sizeof(float));
    std::memcpy(to.scales + i * to.groups, from.scales + token * from.groups, from.groups * sizeof(float));
    std::memcpy(to.offsets + i * to.groups, from.offsets + token * from.groups, from.groups * sizeof(int32_t));
  });
}

// body(expert, panel, panels, first row, rows, thread) for the panels of every expert that has rows, in one region.
template <typename Body>
void StepRun::for_each_expert_task(size_t panels, size_t panels_per_task, const Body& body) {
  std::vector<uint32_t> active;
  for (uint32_t e = 0; e < config_.experts; ++e)
    if (expert_begin_[e + 1] > expert_begin_[e]) active.push_back(e);
  const size_t tasks_each = div_up(panels, panels_per_task);
  pool_.run(active.size() * tasks_each, [&](size_t task, int thread) {
    const uint32_t expert = active[task / tasks_each];
    const size_t panel = task % tasks_each * panels_per_task;
    const size_t first = expert_begin_[expert];
    body(expert, panel, std::min(panels_per_task, panels - panel), first, expert_begin_[expert + 1] - first, thread);
  });
}

void StepRun::combine_slots() {
  const size_t k = config_.experts_per_token;
  const size_t width = config_.padded_hidden();
  for_each(tokens_, [&](size_t t) {
    for (size_t i = t * k; i < (t + 1) * k; ++i)
      kernels_.add_scaled(scratch_.x + t * width, scratch_.slot_out + place_[i] * width, slots_[i].weight, width);
  });
}

}  // namespace ernie
