// Keys and values of all sequences, in pages of 16 tokens that are taken on demand and counted by reference.
#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <vector>

#include "model/config.h"

namespace ernie {

// Memory for another token or sequence is used up. Nothing was changed.
struct CapacityError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Sequence {
  std::vector<uint32_t> pages;
  size_t length = 0;
  bool parked = false;
  // With multi-token prediction: the tokens, and how many positions of the predicting layer are computed. A position of it
  // depends on the token after, so there are fewer than tokens.
  std::vector<int32_t> ids;
  size_t predicted = 0;
};

class KvCache {
 public:
  explicit KvCache(const Config& config);

  int64_t open();
  void free(int64_t id);
  // A sequence that shares the first `length` tokens; a shared page is copied when one side writes to it.
  int64_t fork(int64_t id, size_t length);
  void truncate(int64_t id, size_t length);
  // Keeps a sequence for later forks: it does not count among the open ones, and nothing may be appended to it.
  void park(int64_t id);
  const Sequence& at(int64_t id) const;  // throws std::invalid_argument

  struct Growth {
    int64_t id;
    size_t tokens;
    const std::vector<int32_t>* ids = nullptr;  // which, to be kept; guesses that are dropped again have none
  };
  // Makes room for the tokens and lengthens the sequences; each id at most once. All or nothing.
  void extend(const std::vector<Growth>& batch);
  // How many of their first pages two sequences have in common, if that is more than `least`; else 0.
  static size_t shared_pages(const Sequence& a, const Sequence& b, size_t least);
  void set_predicted(int64_t id, size_t positions) { mutable_at(id).predicted = positions; }

  uint8_t* page(uint32_t index) const { return slabs_[index / slab_pages_].data() + index % slab_pages_ * page_bytes_; }
  // Where a head's part of a page begins, in bytes, and where in it keys and values lie.
  size_t head(size_t layer, size_t head) const { return (layer * config_.kv_heads + head) * layout_.bytes; }
  const KvLayout& layout() const { return layout_; }
  // Where in its page the hidden state of a position lies: padded_hidden() values in float32, or in bfloat16 where keys
  // and values are not float32.
  size_t hidden(size_t position) const {
    return config_.kv_layer_bytes() * config_.kv_layers() + position % kPageTokens * config_.hidden_bytes();
  }

  size_t page_bytes() const { return page_bytes_; }
  size_t free_pages() const { return config_.max_pages - used_; }
  size_t used_pages() const { return used_; }

 private:
  Sequence& mutable_at(int64_t id);
  size_t pages_wanted(const std::vector<Growth>& batch) const;
  bool must_copy_last(const Sequence& sequence) const;
  void prepare_pages(size_t count);
  uint32_t take();
  void release(uint32_t page);
  void check_open_limit() const;

  const Config& config_;
  KvLayout layout_;
  size_t page_bytes_, slab_pages_;
  std::vector<AlignedBuffer> slabs_;
  std::vector<uint32_t> counts_;  // references to each page
  std::vector<uint32_t> free_;
  size_t used_ = 0, open_ = 0;
  int64_t next_id_ = 1;
  std::map<int64_t, Sequence> sequences_;
};

}  // namespace ernie
