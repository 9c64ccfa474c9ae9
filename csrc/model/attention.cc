// The attention half of a layer: projections, rotation, cache, attention, output.
//
// A task is a few tokens of one sequence with the query heads of one key/value head. It takes the sequence's spans of
// keys one after the other. A long sequence with few tokens is split instead: a task for each span, and whoever
// finishes the last joins them in order. Both ways give the same bits, so how it is done is free.
#include <algorithm>
#include <cmath>

#include "model/step.h"

namespace ernie {

void StepRun::attention(size_t index) {
  const Layer& layer = weights_.layers()[index];
  norm_rows(reinterpret_cast<const float*>(layer.input_norm.data()), layer.qkv.view);
  project_qkv(index);
  mark(Part::qkv, layer.qkv.bytes());
  attend(index);
  mark(Part::attention, cache_bytes());
  const Matrix& o = layer.o.view;
  const size_t width = config_.heads * config_.padded_head();
  const Rows context = grouped(scratch_.context_rows, o);
  for_each(tokens_, [&](size_t t) {
    kernels_.prepare(o, scratch_.context + t * width, 0, width, context, t);
  });
  mark(Part::context);
  add_to_residual(o, context);
  mark(Part::o, layer.o.bytes());
}

// Keys and values of one layer that the step's sequences hold.
size_t StepRun::cache_bytes() const {
  size_t pages = 0;
  for (const Piece& piece : pieces_) pages += piece.pages.size();
  return pages * config_.kv_layer_bytes();
}

void StepRun::project_qkv(size_t index) {
  const Matrix& w = weights_.layers()[index].qkv.view;
  const size_t head_panels = config_.padded_head() / kPanelRows;
  multiply(w, grouped(scratch_.input, w), tokens_, head_panels, [&](size_t token, size_t panel, size_t, float* tile) {
    write_head(index, panel / head_panels, token, tile);
  });
}

// Heads come in the order query, key, value; `values` is changed.
void StepRun::write_head(size_t layer, size_t head, size_t token, float* values) {
  const size_t d = config_.head_dim;
  const float* cos = scratch_.cos + token * (d / 2);
  const float* sin = scratch_.sin + token * (d / 2);
  if (head < config_.heads) {
    // Attention weights are powers of two.
    kernels_.rope(values, cos, sin, d, 1.44269504088896341f / std::sqrt(static_cast<float>(d)));
    kernels_.store_query(values, config_.padded_head(), config_.kv_precision, query(head, token), scratch_.query_bytes());
    return;
  }
  head -= config_.heads;
  const bool is_key = head < config_.kv_heads;
  if (is_key) kernels_.rope(values, cos, sin, d, 1.0f);
  const StoreKvFn store = is_key ? kernels_.store_key : kernels_.store_value;
  store({.from = values,
         .head = token_pages_[token] + cache_.head(layer, is_key ? head : head - config_.kv_heads),
         .layout = cache_.layout(),
         .precision = config_.kv_precision,
         .d = d,
         .padded_d = config_.padded_head(),
         .slot = positions_[token] % kPageTokens});
}

// Queries lie as attention reads them: [key/value head][token][head of its group].
uint8_t* StepRun::query(size_t head, size_t token) const {
  const size_t group = config_.query_heads_per_kv();
  return scratch_.q + ((head / group * tokens_ + token) * group + head % group) * scratch_.query_bytes();
}

void StepRun::plan_attention() {
  // Few tokens still make work for every thread.
  size_t most = Scratch::kTokensPerAttention;
  const size_t wanted = 4 * static_cast<size_t>(pool_.threads());
  while (most > 4 && div_up(tokens_, most) * config_.kv_heads < wanted) most /= 2;
  size_t partial_rows = 0;
  for (const Piece& piece : pieces_) {
    for (size_t first = 0; first < piece.tokens; first += most) {
      const size_t tokens = std::min(most, piece.tokens - first);
      const size_t keys = piece.first_position + first + tokens;
      const size_t spans = div_up(keys, kAttentionSpan);
      const size_t rows = tokens * config_.query_heads_per_kv() * spans;  // of partial results
      for (size_t head = 0; head < config_.kv_heads; ++head) {
        AttentionTask task{&piece, head, first, tokens, 0, spans, nullptr};
        if (tokens < piece.tokens || spans == 1 || partial_rows + rows > scratch_.partial_rows()) {
          attention_tasks_.push_back(task);
          continue;
        }
        task.split = &splits_.emplace_back(scratch_.partials + partial_rows * scratch_.partial_floats());
        partial_rows += rows;
        for (task.spans = 1; task.span < spans; ++task.span) attention_tasks_.push_back(task);
      }
    }
  }
  // The longest first, so that threads end together.
  std::stable_sort(attention_tasks_.begin(), attention_tasks_.end(), [](const AttentionTask& a, const AttentionTask& b) {
    return a.tokens * a.spans > b.tokens * b.spans;
  });
}

void StepRun::attend(size_t layer) {
  for (Split& split : splits_) split.done = 0;
  pool_.run(attention_tasks_.size(), [&](size_t i, int thread) {
    const AttentionTask& task = attention_tasks_[i];
    if (task.split == nullptr) {
      attend_in_turn(layer, task, thread);
    } else {
      attend_part(layer, task, thread);
    }
  });
}

// Where a task's results go in the end; shifts and sums are kept in the thread's own memory until then.
Attended StepRun::attended(const AttentionTask& task, int thread) const {
  const size_t padded = config_.padded_head();
  const size_t group = config_.query_heads_per_kv();
  const size_t token = task.piece->first_token + task.first;
  float* numbers = scratch_.attention_rows(thread);
  return {scratch_.context + (token * config_.heads + task.head * group) * padded, config_.heads * padded, numbers,
          numbers + task.tokens * group};
}

// `rows` partial results, in memory for rows * partial_floats() floats.
Attended StepRun::partial(const AttentionTask& task, float* memory) const {
  const size_t group = config_.query_heads_per_kv();
  const size_t rows = task.tokens * group;
  const size_t width = config_.padded_head();
  return {memory, group * width, memory + rows * width, memory + rows * (width + 1)};
}

void StepRun::attend_span(size_t layer, const AttentionTask& task, size_t span, const Attended& to, int thread) {
  const size_t group = config_.query_heads_per_kv();
  kernels_.attend({.pages = task.piece->pages.data(),
                   .head = cache_.head(layer, task.head),
                   .layout = cache_.layout(),
                   .precision = config_.kv_precision,
                   .d = config_.head_dim,
                   .padded_d = config_.padded_head(),
                   .heads = group,
                   .q = query(task.head * group, task.piece->first_token + task.first),
                   .query_bytes = scratch_.query_bytes(),
                   .tokens = task.tokens,
                   .first_position = task.piece->first_position + task.first,
                   .span = span * kAttentionSpan,
                   .to = to,
                   .scratch = scratch_.attention(thread)});
}

void StepRun::attend_in_turn(size_t layer, const AttentionTask& task, int thread) {
  const size_t group = config_.query_heads_per_kv();
  const Attended to = attended(task, thread);
  attend_span(layer, task, 0, to, thread);
  const Attended next = partial(task, scratch_.attention_rows(thread) + 2 * task.tokens * group);
  for (size_t span = 1; span < task.spans; ++span) {
    attend_span(layer, task, span, next, thread);
    kernels_.join(to, next, task.tokens, group, config_.padded_head());
  }
  kernels_.finish(to, task.tokens, group, config_.padded_head());
}

void StepRun::attend_part(size_t layer, const AttentionTask& task, int thread) {
  const size_t group = config_.query_heads_per_kv();
  const size_t floats = task.tokens * group * scratch_.partial_floats();
  Split& split = *task.split;
  attend_span(layer, task, task.span, partial(task, split.partials + task.span * floats), thread);
  const size_t spans = div_up(task.piece->first_position + task.first + task.tokens, kAttentionSpan);
  if (split.done.fetch_add(1, std::memory_order_acq_rel) + 1 < spans) return;
  const Attended to = attended(task, thread);
  const Attended first = partial(task, split.partials);
  const size_t rows = task.tokens * group;
  std::copy_n(first.shift, rows, to.shift);
  std::copy_n(first.sum, rows, to.sum);
  for (size_t t = 0; t < task.tokens; ++t)
    std::copy_n(first.out + t * first.token_stride, first.token_stride, to.out + t * to.token_stride);
  for (size_t span = 1; span < spans; ++span)
    kernels_.join(to, partial(task, split.partials + span * floats), task.tokens, group, config_.padded_head());
  kernels_.finish(to, task.tokens, group, config_.padded_head());
}

}  // namespace ernie
