// Multi-token prediction: one more dense layer, with keys and values of its own, guesses the token after the next from a
// position's hidden state and the token that follows it (ernie_accel/architecture/multi_token.py has the formula).
//
// Its position t depends on the tokens up to t + 1. Hidden states are kept in the pages of the KV cache, so positions are
// computed when somebody asks for drafts, and what is forked, cut or parked takes along what that needs.
#include <cstring>

#include "base/bf16.h"
#include "model/step.h"

namespace ernie {
namespace {

const float* values(const AlignedBuffer& norm) { return reinterpret_cast<const float*>(norm.data()); }

}  // namespace

// After the last layer: the hidden state of every token goes to its page.
void StepRun::keep_hidden() {
  for_each(tokens_, [&](size_t t) { store_hidden(t, token_pages_[t] + cache_.hidden(positions_[t])); });
}

void StepRun::store_hidden(size_t token, uint8_t* to) const {
  const size_t width = config_.padded_hidden();
  float* row = scratch_.norm + token * width;
  kernels_.rms_norm(scratch_.x + token * width, weights_.final_norm(), config_.hidden, config_.eps, row);
  if (config_.kv_precision == KvPrecision::fp32) {
    std::memcpy(to, row, width * sizeof(float));
  } else {
    auto* words = reinterpret_cast<uint16_t*>(to);
    for (size_t i = 0; i < width; ++i) words[i] = float_to_bf16(row[i]);
  }
}

void StepRun::load_hidden(const uint8_t* from, float* row) const {
  const size_t width = config_.padded_hidden();
  if (config_.kv_precision == KvPrecision::fp32) {
    std::memcpy(row, from, width * sizeof(float));
  } else {
    const auto* words = reinterpret_cast<const uint16_t*>(from);
    for (size_t i = 0; i < width; ++i) row[i] = bf16_to_float(words[i]);
  }
}

// Embeddings become what the layer takes: both halves normed, side by side, projected.
void StepRun::pair_tokens() {
  const MultiToken& own = weights_.multi_token();
  const size_t width = config_.padded_hidden();
  const Rows rows = grouped(scratch_.pair_rows, own.projection.view);
  for_each(tokens_, [&](size_t t) {
    float* pair = scratch_.pairs + t * 2 * width;
    kernels_.rms_norm(scratch_.x + t * width, values(own.emb_norm), config_.hidden, config_.eps, pair);
    load_hidden(token_pages_[t] + cache_.hidden(positions_[t]), pair + width);
    kernels_.rms_norm(pair + width, values(own.hidden_norm), config_.hidden, config_.eps, pair + width);
    kernels_.prepare(own.projection.view, pair, 0, 2 * width, rows, t);
  });
  multiply(own.projection.view, rows, tokens_, 4, [&](size_t token, size_t panel, size_t panels, const float* tile) {
    std::memcpy(scratch_.x + token * width + panel * kPanelRows, tile, panels * kPanelRows * sizeof(float));
  });
}

void StepRun::predict(const std::vector<StepInput>& batch, const std::vector<size_t>& firsts,
                      std::vector<StepOutput>& outputs) {
  for (size_t i = 0; i < batch.size(); ++i) place(batch[i].sequence, firsts[i], batch[i].ids.size());
  plan_attention();
  embed(batch);
  pair_tokens();
  attention(config_.layers);
  const Layer& layer = weights_.layers()[config_.layers];
  norm_rows(values(layer.post_norm), layer.ffn.gate_up.view);
  dense_ffn(layer.ffn);
  for (size_t i = 0; i < batch.size(); ++i) {
    const Sequence& sequence = cache_.at(batch[i].sequence);
    const size_t next = pieces_[i].first_position + pieces_[i].tokens;
    if (batch[i].rows > 0 && next < sequence.length)  // another guess will follow
      store_hidden(pieces_[i].first_token + pieces_[i].tokens - 1,
                   cache_.page(sequence.pages[next / kPageTokens]) + cache_.hidden(next));
  }
  answer(batch, outputs);
}

}  // namespace ernie
