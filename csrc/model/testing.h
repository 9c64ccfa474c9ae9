// Small random models that the tests of this folder share.
#pragma once

#include <utility>
#include <vector>

#include "model/model.h"
#include "tests/testing.h"

namespace ernie {

inline Config small(bool moe) {
  Config c;
  c.vocab = 50, c.hidden = 24, c.layers = 2, c.heads = 4, c.kv_heads = 2, c.head_dim = 6, c.intermediate = 40;
  c.eps = 1e-5f, c.theta = 10000.0f, c.tied = !moe;
  c.moe_layers = {false, moe};
  if (moe) c.experts = 5, c.experts_per_token = 2, c.expert_intermediate = 20, c.shared_experts = 1, c.norm_min = 1e-12f;
  c.max_context = 200, c.max_step_tokens = 64, c.max_sequences = 4, c.max_pages = 20;
  return c;
}

// Owns the random tensors that a model is filled with.
class Filler {
 public:
  void fill(Model& model) {
    const Config& c = model.config();
    Weights& w = model.weights();
    if (c.tied) {
      w.set_head(matrix(c.vocab, c.hidden));
    } else {
      w.set_embedding(matrix(c.vocab, c.hidden));
      w.set_head(matrix(c.vocab, c.hidden));
    }
    w.set_final_norm(matrix(1, c.hidden));
    for (size_t i = 0; i < c.kv_layers(); ++i) {
      const bool moe = i < c.layers && c.moe_layers[i];
      const size_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
      w.set_norms(i, matrix(1, c.hidden), matrix(1, c.hidden));
      w.set_attention(i, matrix(q, c.hidden), matrix(kv, c.hidden), matrix(kv, c.hidden), matrix(c.hidden, q));
      const size_t width = moe ? c.shared_intermediate() : c.intermediate;
      w.set_ffn(i, matrix(width, c.hidden), matrix(width, c.hidden), matrix(c.hidden, width));
      if (!moe) continue;
      w.set_router(i, matrix(c.experts, c.hidden), matrix(1, c.experts));
      for (size_t e = 0; e < c.experts; ++e)
        w.set_expert(i, e, matrix(c.expert_intermediate, c.hidden), matrix(c.expert_intermediate, c.hidden),
                     matrix(c.hidden, c.expert_intermediate));
    }
    if (c.multi_token) {
      w.set_multi_token(matrix(c.hidden, 2 * c.hidden));
      w.set_multi_token_norms(matrix(1, c.hidden), matrix(1, c.hidden));
    }
    model.finish();
  }

 private:
  Source matrix(size_t rows, size_t cols) {
    kept_.push_back(normals(random_, rows * cols, 0.3f));
    return {kept_.back().data(), Dtype::fp32, rows, cols, static_cast<ptrdiff_t>(cols), 1};
  }
  std::mt19937 random_{5};
  std::vector<std::vector<float>> kept_;
};

inline StepInput step(int64_t sequence, std::vector<int32_t> ids, size_t rows) {
  StepInput input;
  input.sequence = sequence;
  input.ids = std::move(ids);
  input.rows = rows;
  input.output = Output::logits;
  return input;
}

inline std::vector<int32_t> some_ids(size_t n) {
  std::vector<int32_t> ids(n);
  for (size_t i = 0; i < n; ++i) ids[i] = static_cast<int32_t>((i * 37 + 11) % 50);
  return ids;
}

}  // namespace ernie
