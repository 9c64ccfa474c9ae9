#include "model/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <string>

namespace ernie {
namespace {

constexpr size_t kSlabBytes = size_t{16} << 20;

size_t pages_for(size_t tokens) { return div_up(tokens, kPageTokens); }

// Positions of the predicting layer that stay good when a sequence is cut: the last one depends on what came after it.
size_t predicted_below(size_t predicted, size_t length) { return std::min(predicted, length > 0 ? length - 1 : 0); }

}  // namespace

KvCache::KvCache(const Config& config) : config_(config) {
  layout_ = config.kv_layout();
  page_bytes_ = config.page_bytes();
  slab_pages_ = std::clamp<size_t>(kSlabBytes / page_bytes_, 1, config.max_pages);
}

int64_t KvCache::open() {
  check_open_limit();
  sequences_.emplace(next_id_, Sequence{});
  ++open_;
  return next_id_++;
}

void KvCache::check_open_limit() const {
  if (open_ >= config_.max_sequences)
    throw CapacityError("all " + std::to_string(config_.max_sequences) + " sequences are open");
}

const Sequence& KvCache::at(int64_t id) const {
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) throw std::invalid_argument("sequence " + std::to_string(id) + " is not open");
  return found->second;
}

Sequence& KvCache::mutable_at(int64_t id) { return const_cast<Sequence&>(at(id)); }

void KvCache::free(int64_t id) {
  const Sequence& sequence = at(id);
  for (uint32_t page : sequence.pages) release(page);
  if (!sequence.parked) --open_;
  sequences_.erase(id);
}

size_t KvCache::shared_pages(const Sequence& a, const Sequence& b, size_t least) {
  const size_t most = std::min(a.pages.size(), b.pages.size());
  if (least >= most || a.pages[least] != b.pages[least]) return 0;
  size_t count = least + 1;  // pages before one that is shared are shared too
  while (count < most && a.pages[count] == b.pages[count]) ++count;
  return count;
}

int64_t KvCache::fork(int64_t id, size_t length) {
  const Sequence& from = at(id);
  if (length > from.length)
    throw std::invalid_argument("cannot fork at " + std::to_string(length) + ": the sequence holds " +
                                std::to_string(from.length) + " tokens");
  check_open_limit();
  Sequence copy{{from.pages.begin(), from.pages.begin() + static_cast<ptrdiff_t>(pages_for(length))}, length, false, {}, 0};
  copy.ids.assign(from.ids.begin(), from.ids.begin() + static_cast<ptrdiff_t>(std::min(length, from.ids.size())));
  copy.predicted = predicted_below(from.predicted, length);
  const auto added = sequences_.emplace(next_id_, std::move(copy)).first;
  for (uint32_t page : added->second.pages) ++counts_[page];
  ++open_;
  return next_id_++;
}

void KvCache::truncate(int64_t id, size_t length) {
  Sequence& sequence = mutable_at(id);
  if (length > sequence.length)
    throw std::invalid_argument("cannot truncate to " + std::to_string(length) + ": the sequence holds " +
                                std::to_string(sequence.length) + " tokens");
  while (sequence.pages.size() > pages_for(length)) {
    release(sequence.pages.back());
    sequence.pages.pop_back();
  }
  sequence.length = length;
  sequence.ids.resize(std::min(length, sequence.ids.size()));
  sequence.predicted = predicted_below(sequence.predicted, length);
}

void KvCache::park(int64_t id) {
  Sequence& sequence = mutable_at(id);
  if (!sequence.parked) --open_;
  sequence.parked = true;
}

// What is written next goes to the page of the last token if that has room; the predicting layer writes at the last token.
bool KvCache::must_copy_last(const Sequence& sequence) const {
  const bool writes = sequence.length % kPageTokens != 0 || (config_.multi_token && sequence.length > 0);
  return writes && counts_[sequence.pages.back()] > 1;
}

size_t KvCache::pages_wanted(const std::vector<Growth>& batch) const {
  // Sequences of the batch that share a page copy it one after the other; the last that holds it keeps it.
  std::map<uint32_t, uint32_t> holders;
  size_t wanted = 0;
  for (const Growth& growth : batch) {
    const Sequence& sequence = at(growth.id);
    wanted += pages_for(sequence.length + growth.tokens) - sequence.pages.size();
    if (!must_copy_last(sequence)) continue;
    uint32_t& left = holders.try_emplace(sequence.pages.back(), counts_[sequence.pages.back()]).first->second;
    if (left > 1) --left, ++wanted;
  }
  return wanted;
}

void KvCache::extend(const std::vector<Growth>& batch) {
  const size_t wanted = pages_wanted(batch);
  if (wanted > free_pages())
    throw CapacityError("the KV cache has room for " + std::to_string(free_pages() * kPageTokens) +
                        " more tokens, the step needs " + std::to_string(wanted * kPageTokens));
  prepare_pages(wanted);
  for (const Growth& growth : batch) {
    Sequence& sequence = mutable_at(growth.id);
    sequence.pages.reserve(pages_for(sequence.length + growth.tokens));
    if (growth.ids != nullptr && sequence.ids.capacity() < sequence.length + growth.tokens)
      sequence.ids.reserve(2 * (sequence.length + growth.tokens));
  }
  for (const Growth& growth : batch) {  // nothing below can fail
    Sequence& sequence = mutable_at(growth.id);
    if (must_copy_last(sequence)) {
      const uint32_t copy = take();
      std::memcpy(page(copy), page(sequence.pages.back()), page_bytes_);
      release(sequence.pages.back());
      sequence.pages.back() = copy;
    }
    if (growth.ids != nullptr) sequence.ids.insert(sequence.ids.end(), growth.ids->begin(), growth.ids->end());
    sequence.length += growth.tokens;
    while (sequence.pages.size() < pages_for(sequence.length)) sequence.pages.push_back(take());
  }
}

// Makes sure that `count` pages can be taken, mapping new slabs where needed.
void KvCache::prepare_pages(size_t count) {
  while (free_.size() < count) {
    const size_t first = slabs_.size() * slab_pages_;
    const size_t pages = std::min(slab_pages_, config_.max_pages - first);
    try {
      slabs_.reserve(slabs_.size() + 1);
      counts_.reserve(first + pages);
      free_.reserve(first + pages);
      slabs_.emplace_back(pages * page_bytes_);
    } catch (const std::bad_alloc&) {
      throw CapacityError("the system has no memory for another " + std::to_string(pages * page_bytes_) +
                          " bytes of KV cache");
    }
    counts_.resize(first + pages, 0);
    for (size_t i = pages; i > 0; --i) free_.push_back(static_cast<uint32_t>(first + i - 1));
  }
}

uint32_t KvCache::take() {
  const uint32_t page = free_.back();
  free_.pop_back();
  counts_[page] = 1;
  ++used_;
  return page;
}

void KvCache::release(uint32_t page) {
  if (--counts_[page] > 0) return;
  free_.push_back(page);
  --used_;
}

}  // namespace ernie
