// Asks memory for the panels that come next while these are multiplied.
//
// Several tiles of rows go over the same panels: the first waits for memory, the others find them in the cache and leave
// memory idle. So every tile asks for its share of the next panels, some lines at a time, as many as memory can deliver.
#pragma once

#include "kernels/linear/linear.h"

namespace ernie::ERNIE_VARIANT {

class PanelsAhead {
 public:
  PanelsAhead() = default;
  // Lines [begin, end), for `tiles` tiles that each call `step` once every 16 columns of `cols`.
  PanelsAhead(const uint8_t* begin, const uint8_t* end, size_t tiles, size_t cols) : at_(begin), end_(end) {
    const size_t lines = static_cast<size_t>(end - begin) / kLineBytes, steps = tiles * (cols / 16);
    rate_ = steps == 0 ? 0 : (lines + steps - 1) / steps;
  }
  inline void step() {
    for (size_t i = 0; i < rate_ && at_ < end_; ++i, at_ += kLineBytes) __builtin_prefetch(at_, 0, 2);
  }

 private:
  const uint8_t* at_ = nullptr;
  const uint8_t* end_ = nullptr;
  size_t rate_ = 0;
};

// What to ask for while `count` rows are multiplied by panels [panel, panel + panels) in `tiles` tiles: the panels from
// `next` on. One or two rows take no longer than memory does, and the processor sees by itself what they want.
static inline PanelsAhead ahead_of(const Matrix& w, size_t count, size_t tiles, size_t panels, size_t next) {
  if (count <= 2 || next >= w.panels()) return {};
  const size_t some = w.panels() - next < panels ? w.panels() - next : panels;
  const uint8_t* begin = w.data + next * w.panel_bytes;
  return {begin, begin + some * w.panel_bytes, tiles, w.cols};
}

}  // namespace ernie::ERNIE_VARIANT
