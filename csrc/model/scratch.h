// Working memory of one step: everything that `forward` needs, laid out once for the largest step. The layout is made
// before the memory is taken, so what a model will need can be told beforehand.
#pragma once

#include <functional>
#include <vector>

#include "base/memory.h"
#include "kernels/select/select.h"
#include "model/config.h"

namespace ernie {

class Scratch {
 public:
  Scratch(const Config& config, int threads);
  Scratch(const Scratch&) = delete;  // the pointers are set from outside
  Scratch& operator=(const Scratch&) = delete;

  size_t bytes() const { return arena_.size(); }
  // Takes the memory; the pointers are valid from here on.
  void allocate();

  float* x;        // [tokens][padded hidden], the residual stream
  float* norm;     // [tokens][padded hidden]
  uint8_t* q;      // [key/value heads][tokens][heads of its group][query_bytes()]
  float* context;  // [tokens][heads][padded head]: what attention gives
  float* partials;  // [partial_rows()][partial_floats()], of spans that are attended to in parallel
  float* cos;      // [tokens][head / 2]
  float* sin;
  Rows input;         // [tokens], hidden wide
  Rows context_rows;  // [tokens], heads * padded head wide
  Rows inner;         // [tokens], FFN wide
  float* pairs;       // [tokens][2 * padded hidden], what multi-token prediction begins with
  Rows pair_rows;     // [tokens], 2 * hidden wide
  // Mixture of experts; a slot is one (token, expert) pair, slots are sorted by expert.
  Rows slot_input;    // [tokens * k], hidden wide
  Rows slot_inner;    // [tokens * k], expert wide
  float* slot_out;    // [tokens * k][padded hidden]
  float* router;      // [tokens][experts rounded up to 16]

  // Bounds of the head's panels, [kBoundRows][panels], and of the groups of its activations, [kBoundRows][groups].
  float* lower;
  float* upper;
  float* spread;

  size_t panels_per_task() const { return panels_per_task_; }
  // A tile of kRowsPerBlock rows of one task, for each thread.
  float* tile(int thread) const { return arena_.at<float>(tile_) + static_cast<size_t>(thread) * tile_floats_; }
  size_t query_bytes() const { return query_bytes_; }
  size_t partial_rows() const { return partial_rows_; }
  size_t partial_floats() const { return partial_floats_; }
  // A thread's memory for the attention kernel, and for shifts, sums and the next span's results of a task's rows.
  uint8_t* attention(int thread) const {
    return arena_.at<uint8_t>(attention_) + static_cast<size_t>(thread) * attention_bytes_;
  }
  float* attention_rows(int thread) const { return reinterpret_cast<float*>(attention(thread) + kernel_bytes_); }

  uint8_t* linear(int thread) const { return arena_.at<uint8_t>(linear_) + static_cast<size_t>(thread) * linear_bytes_; }

  static constexpr size_t kRowsPerBlock = 256;     // a multiple of every tile's rows
  static constexpr size_t kTokensPerAttention = 32;
  static constexpr size_t kBoundRows = 4;  // more rows make the whole head the faster way

  // Grows at the first draw that needs it, a few times the vocabulary.
  SelectScratch& select(int thread) { return select_[static_cast<size_t>(thread)]; }

 private:
  Arena arena_;
  std::vector<std::function<void()>> set_pointers_;
  std::vector<SelectScratch> select_;
  size_t tile_ = 0, tile_floats_ = 0, panels_per_task_ = 0;
  size_t attention_ = 0, attention_bytes_ = 0, kernel_bytes_ = 0;
  size_t query_bytes_ = 0, partial_rows_ = 0, partial_floats_ = 0;
  size_t linear_ = 0, linear_bytes_ = 0;
};

}  // namespace ernie
