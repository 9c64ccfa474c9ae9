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

  const Rows inner = grouped(scratch_.slot_inner, layer.experts[0].down.view);
  const Rows input = grouped(scratch_.slot_input, layer.experts[0].gate_up.view);
  multiply_experts(layer, &FeedForward::gate_up, input, scratch_.panels_per_task(),
                   [&](const FeedForward& ffn, size_t row, size_t panel, size_t panels, const float* tile) {
                     write_inner(ffn.down.view, inner, row, panel, panels, tile);
                   });
  mark(Part::experts_gate_up, active_experts() * layer.experts[0].gate_up.bytes());
  const size_t width = config_.padded_hidden();
  multiply_experts(layer, &FeedForward::down, inner, 8,
                   [&](const FeedForward&, size_t row, size_t panel, size_t panels, const float* tile) {
                     std::memcpy(scratch_.slot_out + row * width + panel * kPanelRows, tile,
                                 panels * kPanelRows * sizeof(float));
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
  score_experts(layer.router.view);
  for_each(tokens_, [&](size_t t) { choose(layer, t); });
}

// A few tokens share the router's panels among the threads: memory is what takes time. Many are shared themselves.
void StepRun::score_experts(const Matrix& router) {
  constexpr size_t kTokensAtOnce = 16;
  Rows rows;
  rows.data = reinterpret_cast<uint8_t*>(scratch_.norm);
  rows.stride = config_.padded_hidden() * sizeof(float);
  const size_t panels_each = tokens_ <= kTokensAtOnce ? 1 : router.panels();
  const size_t parts = router.panels() / panels_each;
  pool_.run(div_up(tokens_, kTokensAtOnce) * parts, [&](size_t task, int thread) {
    const size_t first = task / parts * kTokensAtOnce, panel = task % parts * panels_each;
    const size_t count = std::min(kTokensAtOnce, tokens_ - first);
    kernels_.linear(router, rows, first, count, panel, panels_each, router.panels(),
                    scratch_.router + first * router.rows + panel * kPanelRows, router.rows, scratch_.linear(thread));
  });
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

// One matrix of every expert that has rows by those rows, in one region: epilogue(expert, row, panel, panels, tile).
template <typename Epilogue>
void StepRun::multiply_experts(const Layer& layer, PackedMatrix FeedForward::*which, const Rows& x, size_t panels_per_task,
                               const Epilogue& epilogue) {
  std::vector<uint32_t> active;
  for (uint32_t e = 0; e < config_.experts; ++e)
    if (expert_begin_[e + 1] > expert_begin_[e]) active.push_back(e);
  const auto matrix = [&](size_t i) -> const Matrix& { return (layer.experts[active[i]].*which).view; };
  const size_t panels = matrix(0).panels(), tasks_each = div_up(panels, panels_per_task);
  const size_t tasks = active.size() * tasks_each;
  pool_.run_neighbours(tasks, [&](size_t task, int thread) {
    const uint32_t expert = active[task / tasks_each];
    const Matrix& w = matrix(task / tasks_each);
    const size_t panel = task % tasks_each * panels_per_task, some = std::min(panels_per_task, panels - panel);
    const size_t first = expert_begin_[expert], rows = expert_begin_[expert + 1] - first;
    const size_t then = task + 1;  // the next expert's panels follow those of this one
    const Next next = then < tasks ? Next(matrix(then / tasks_each), then % tasks_each * panels_per_task) : Next(panels);
    multiply_block(w, x, first, rows, panel, some, next, thread, [&](size_t row, const float* tile) {
      epilogue(layer.experts[expert], row, panel, some, tile);
    });
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
