// The attention half of a layer: projections, rotation, cache, attention, output.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/bf16.h"
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
  return pages * config_.page_head_bytes() * config_.kv_heads;
}

void StepRun::project_qkv(size_t index) {
  const Matrix& w = weights_.layers()[index].qkv.view;
  const size_t head_panels = config_.padded_head() / kPanelRows;
  multiply(w, grouped(scratch_.input, w), tokens_, head_panels, [&](size_t token, size_t panel, size_t, float* tile) {
    write_head(index, panel / head_panels, token, tile);
  });
}

// Heads come in the order query, key, value.
void StepRun::write_head(size_t layer, size_t head, size_t token, float* values) {
  const size_t d = config_.head_dim;
  const size_t padded = config_.padded_head();
  const float* cos = scratch_.cos + token * (d / 2);
  const float* sin = scratch_.sin + token * (d / 2);
  if (head < config_.heads) {
    kernels_.rope(values, cos, sin, d, 1.0f / std::sqrt(static_cast<float>(d)));
    std::memcpy(scratch_.q + (token * config_.heads + head) * padded, values, padded * sizeof(float));
    return;
  }
  head -= config_.heads;
  const bool is_key = head < config_.kv_heads;
  uint8_t* page = token_pages_[token];
  const size_t slot = positions_[token] % kPageTokens;
  if (is_key) kernels_.rope(values, cos, sin, d, 1.0f);
  uint8_t* base = page + (is_key ? cache_.keys(layer, head) : cache_.values(layer, head - config_.kv_heads));
  const size_t first = is_key ? slot : slot * padded;
  const size_t step = is_key ? kPageTokens : 1;
  const size_t count = is_key ? d : padded;
  if (config_.kv_precision == KvPrecision::fp32) {
    float* to = reinterpret_cast<float*>(base) + first;
    for (size_t i = 0; i < count; ++i) to[i * step] = values[i];
  } else {
    uint16_t* to = reinterpret_cast<uint16_t*>(base) + first;
    for (size_t i = 0; i < count; ++i) to[i * step] = float_to_bf16(values[i]);
  }
}

void StepRun::attend(size_t layer) {
  struct Task {
    const Piece* piece;
    size_t head, first;
  };
  std::vector<Task> tasks;
  for (const Piece& piece : pieces_)
    for (size_t first = 0; first < piece.tokens; first += Scratch::kTokensPerAttention)
      for (size_t head = 0; head < config_.kv_heads; ++head) tasks.push_back({&piece, head, first});
  const size_t group = config_.query_heads_per_kv();
  const size_t padded = config_.padded_head();
  pool_.run(tasks.size(), [&](size_t i, int thread) {
    const Task& task = tasks[i];
    const size_t token = task.piece->first_token + task.first;
    const size_t at = (token * config_.heads + task.head * group) * padded;
    kernels_.attend({.pages = task.piece->pages.data(),
                     .keys = cache_.keys(layer, task.head),
                     .values = cache_.values(layer, task.head),
                     .precision = config_.kv_precision,
                     .d = config_.head_dim,
                     .padded_d = padded,
                     .heads = group,
                     .q = scratch_.q + at,
                     .out = scratch_.context + at,
                     .stride = config_.heads * padded,
                     .tokens = std::min(Scratch::kTokensPerAttention, task.piece->tokens - task.first),
                     .first_position = task.piece->first_position + task.first,
                     .scratch = scratch_.attention(thread)});
  });
}

}  // namespace ernie
