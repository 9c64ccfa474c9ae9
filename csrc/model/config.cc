#include "model/config.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace ernie {
namespace {

void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(std::string("native model: ") + what);
}

// Ids, rows of a step and pages have 32-bit numbers; with these limits no product of sizes exceeds 64 bits.
constexpr size_t kLargest = size_t{1} << 31;
constexpr size_t kWidest = size_t{1} << 24;
constexpr size_t kMost = size_t{1} << 16;

}  // namespace

void Config::check() const {
  for (size_t size : {vocab, hidden, layers, heads, kv_heads, head_dim, intermediate, max_context, max_step_tokens,
                      max_sequences, max_pages})
    require(size > 0 && size < kLargest, "every size must be from 1 to 2**31 - 1");
  require(hidden <= kWidest && intermediate <= kWidest && heads * padded_head() <= kWidest,
          "hidden, intermediate and heads * head_dim must be at most 2**24");
  require(vocab <= size_t{1} << 22, "the vocabulary must be at most 2**22");  // see kernels/select/passes.h
  require(layers <= kMost && max_step_tokens <= kMost, "layers and max_step_tokens must be at most 2**16");
  require(head_dim % 2 == 0, "head_dim must be even");
  require(heads % kv_heads == 0, "num_attention_heads must be a multiple of num_key_value_heads");
  require(query_heads_per_kv() <= 64, "at most 64 query heads may share a key/value head");
  require(moe_layers.size() == layers, "one entry of moe_layers for each layer");
  for (size_t size : {group, down_group, head_group})
    require(size % 16 == 0 && size > 0 && size <= 256, "int8 groups must be multiples of 16 up to 256");
  const bool any_moe = std::find(moe_layers.begin(), moe_layers.end(), true) != moe_layers.end();
  require(experts > 0 || !any_moe, "a layer has a mixture of experts and there are no experts");
  if (experts == 0) return;
  require(experts < kMost && shared_experts < kMost, "experts and shared experts must be fewer than 2**16");
  require(expert_intermediate > 0 && expert_intermediate <= kWidest && shared_intermediate() <= kWidest,
          "the width of experts must be from 1 to 2**24");
  require(experts_per_token >= 1 && experts_per_token <= experts, "experts per token must be from 1 to experts");
  require(max_step_tokens * experts_per_token < kLargest, "max_step_tokens * experts per token must be below 2**31");
}

}  // namespace ernie
