// Sizes of one model, as config.json gives them, checked by the caller (architecture/config.py) and again here.
#pragma once

#include <cstddef>
#include <vector>

#include "base/memory.h"
#include "kernels/attention/attention.h"
#include "kernels/linear/pack.h"

namespace ernie {

struct Config {
  size_t vocab = 0, hidden = 0, layers = 0, heads = 0, kv_heads = 0, head_dim = 0, intermediate = 0;
  float eps = 0.0f, theta = 0.0f;
  bool tied = false;
  bool multi_token = false;  // one more dense layer guesses the token after the next
  // Mixture of experts; experts 0 in a dense model.
  size_t experts = 0, experts_per_token = 0, expert_intermediate = 0, shared_experts = 0;
  float norm_min = 0.0f;
  std::vector<bool> moe_layers;

  // How it runs.
  Precision precision = Precision::fp32;
  KvPrecision kv_precision = KvPrecision::fp32;
  // Groups of activations; those of weights are the same, in int4 at least kInt4Scale columns.
  size_t group = 64;       // of every matrix but the next two
  size_t down_group = 32;  // ... of the down projections, whose inputs have the widest range
  size_t head_group = 64;  // ... of the vocabulary head
  bool whole_head = false;  // never draws from bounds of a nested head
  size_t max_context = 0, max_step_tokens = 0, max_sequences = 0, max_pages = 0;

  // The head is nested, of 6 bits in an int4 model, where it is not given in codes.
  Precision head_precision() const {
    return precision == Precision::int8   ? Precision::nested8
           : precision == Precision::int4 ? Precision::nested6
                                          : precision;
  }
  static constexpr size_t kInt4Scale = 128;
  // Groups of a matrix of that precision whose activations have groups of `size`.
  static Groups groups(Precision p, size_t size) {
    return {size, p == Precision::int4 && size < kInt4Scale ? kInt4Scale / size * size : size};
  }
  size_t padded_head() const { return round_up(head_dim, 16); }
  size_t padded_hidden() const { return round_up(hidden, 16); }
  size_t query_heads_per_kv() const { return heads / kv_heads; }
  size_t shared_intermediate() const { return expert_intermediate * shared_experts; }

  // Where one layer's and head's keys and values lie in its part of a KV page.
  KvLayout kv_layout() const { return ernie::kv_layout(kv_precision, head_dim); }
  // Layers that have keys and values; the predicting one is the last. Hidden states of the page's tokens come after them.
  size_t kv_layers() const { return layers + (multi_token ? 1 : 0); }
  size_t kv_layer_bytes() const { return kv_layout().bytes * kv_heads; }
  size_t hidden_bytes() const {
    return multi_token ? padded_hidden() * (kv_precision == KvPrecision::fp32 ? 4 : 2) : 0;
  }
  size_t page_bytes() const { return kv_layer_bytes() * kv_layers() + kPageTokens * hidden_bytes(); }

  // Throws std::invalid_argument.
  void check() const;
};

}  // namespace ernie
