#include "model/scratch.h"

#include <algorithm>
#include <initializer_list>

namespace ernie {
namespace {

// Adds buffers to an arena and notes how to fill the pointers in once it is allocated.
class Layout {
 public:
  Layout(Arena& arena, std::vector<std::function<void()>>& later) : arena_(arena), later_(later) {}

  template <typename T>
  void array(T** to, size_t count) {
    const size_t at = arena_.add(count * sizeof(T));
    later_.push_back([=, &arena = arena_] { *to = arena.at<T>(at); });
  }
  void floats(float** to, size_t count) { array(to, count); }

  // Rows for matrices of that width whose int8 groups are any of `groups`.
  void rows(Rows* to, Precision precision, size_t count, size_t cols, std::initializer_list<size_t> groups) {
    const size_t element = precision == Precision::fp32 ? 4 : precision == Precision::bf16 ? 2 : 1;
    const bool quantised = is_quantised(precision);
    to->stride = round_up(round_up(cols, 32) * element, kAlign);
    to->groups = 0;
    if (quantised)
      for (size_t group : groups) to->groups = std::max(to->groups, div_up(cols, group));
    to->fine_stride = quantised ? div_up(cols, kSubColumns) : 0;
    const size_t data = arena_.add(count * to->stride + kLineBytes);
    const size_t scales = arena_.add(count * to->groups * sizeof(float));
    const size_t offsets = arena_.add(count * to->groups * sizeof(int32_t));
    const size_t fine = arena_.add(count * to->fine_stride * sizeof(int32_t));
    const size_t exact = arena_.add(quantised ? count * kMaxExact * sizeof(float) : 0);
    later_.push_back([=, &arena = arena_] {
      to->data = arena.at<uint8_t>(data);
      to->scales = arena.at<float>(scales);
      to->offsets = arena.at<int32_t>(offsets);
      to->fine = arena.at<int32_t>(fine);
      to->exact = arena.at<float>(exact);
    });
  }

 private:
  Arena& arena_;
  std::vector<std::function<void()>>& later_;
};

}  // namespace

Scratch::Scratch(const Config& c, int threads) : select_(static_cast<size_t>(threads)) {
  const size_t tokens = c.max_step_tokens;
  const size_t hidden = c.padded_hidden();
  const size_t heads = c.heads * c.padded_head();
  const size_t slots = c.experts > 0 ? tokens * c.experts_per_token : 0;
  const size_t inner_width = std::max(c.intermediate, c.shared_intermediate());
  // A task's columns are whole quantization groups of the down projection's input, at least 64 of them.
  const size_t columns = c.down_group * div_up(64, c.down_group);
  panels_per_task_ = 2 * columns / kPanelRows;
  tile_floats_ = kRowsPerBlock * std::max(panels_per_task_ * kPanelRows, c.padded_head()) + kAlign;
  query_bytes_ = ernie::query_bytes(c.kv_precision, c.head_dim);
  partial_floats_ = c.padded_head() + 2;
  // Enough for one sequence as long as the context, or for every thread to have some spans.
  partial_rows_ = c.heads * std::max(div_up(c.max_context, kAttentionSpan), 8 * static_cast<size_t>(threads));
  kernel_bytes_ = round_up(attend_scratch_bytes(c.padded_head()), kAlign);
  const size_t rows = kTokensPerAttention * c.query_heads_per_kv();
  attention_bytes_ = kernel_bytes_ + round_up(rows * (2 + partial_floats_) * sizeof(float), kAlign);

  Layout layout(arena_, set_pointers_);
  layout.floats(&x, tokens * hidden);
  layout.floats(&norm, tokens * hidden);
  layout.array(&q, (tokens * c.heads + 15) * query_bytes_);
  layout.floats(&context, tokens * heads);
  layout.floats(&partials, partial_rows_ * partial_floats_);
  layout.floats(&cos, tokens * (c.head_dim / 2));
  layout.floats(&sin, tokens * (c.head_dim / 2));
  // The head may have finer groups than the layers; both read `input`.
  layout.rows(&input, c.precision, tokens, hidden, {c.group, c.head_group});
  layout.rows(&context_rows, c.precision, tokens, heads, {c.group});
  layout.rows(&inner, c.precision, tokens, inner_width, {c.down_group});
  const size_t pair = c.multi_token ? 2 * hidden : 0;
  const size_t paired = c.multi_token ? tokens : 0;
  layout.floats(&pairs, paired * pair);
  layout.rows(&pair_rows, c.precision, paired, pair, {c.group});
  layout.rows(&slot_input, c.precision, slots, hidden, {c.group});
  layout.rows(&slot_inner, c.precision, slots, c.expert_intermediate, {c.down_group});
  layout.floats(&slot_out, slots * hidden);
  layout.floats(&router, tokens * round_up(c.experts, 16));
  const size_t bounds = is_quantised(c.precision) ? kBoundRows * div_up(c.vocab, kPanelRows) : 0;
  layout.floats(&lower, bounds);
  layout.floats(&upper, bounds);
  layout.floats(&spread, bounds == 0 ? 0 : kBoundRows * div_up(hidden, c.head_group));
  linear_bytes_ = 0;
  for (size_t cols : {hidden, heads, inner_width, c.expert_intermediate, pair})
    linear_bytes_ = std::max(linear_bytes_, round_up(linear_scratch_bytes(round_up(cols, 16)), kAlign));
  linear_ = arena_.add(static_cast<size_t>(threads) * linear_bytes_);
  tile_ = arena_.add(static_cast<size_t>(threads) * tile_floats_ * sizeof(float));
  attention_ = arena_.add(static_cast<size_t>(threads) * attention_bytes_);
}

void Scratch::allocate() {
  arena_.allocate();
  for (const auto& set : set_pointers_) set();
}

}  // namespace ernie
