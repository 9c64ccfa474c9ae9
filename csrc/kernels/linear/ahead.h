// Asks memory for the panels that come next while these are multiplied.
//
// One row waits for memory. Panels lie in order and a thread takes neighbours, so what it wants next is what lies kRowAhead
// bytes further on. The processor's own prefetching sees that too, but later, and stops at pages and at headers.
//
// Several tiles of rows go over the same panels: the first waits for memory, the others find them in the cache and leave
// memory idle. So every tile asks for its share of the next panels, some lines at a time, as many as memory can deliver.
#pragma once

#include "kernels/linear/linear.h"

namespace ernie::ERNIE_VARIANT {

inline constexpr size_t kRowAhead = 8192;

// Lines [begin, end), asked for in equal parts by `steps` calls.
class LinesAhead {
 public:
  LinesAhead() = default;
  LinesAhead(const uint8_t* begin, size_t bytes, size_t steps) : at_(begin), end_(begin + bytes) {
    const size_t lines = bytes / kLineBytes;
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

// Panels, their lower plane too: every tile calls `step` once every 16 columns.
class PanelsAhead {
 public:
  PanelsAhead() = default;
  PanelsAhead(LinesAhead data, LinesAhead low) : data_(data), low_(low) {}
  inline void step() {
    data_.step();
    low_.step();
  }

 private:
  LinesAhead data_, low_;
};

// `some` panels from `next` on, as far as there are any, asked for in `steps` steps.
static inline LinesAhead upper_ahead(const Matrix& w, size_t steps, size_t next, size_t some) {
  if (next >= w.panels()) return {};
  if (some > w.panels() - next) some = w.panels() - next;
  return {w.data + next * w.panel_bytes, some * w.panel_bytes, steps};
}

// What to ask for while `count` rows are multiplied in `tiles` tiles by as many panels as `some`. One or two rows by
// whole bytes take no longer than memory does, and the processor sees by itself what they want.
static inline PanelsAhead ahead_of(const Matrix& w, size_t count, size_t tiles, Next next, size_t some) {
  const Matrix& of = next.other != nullptr ? *next.other : w;
  const bool nibbles = w.precision == Precision::int4 || is_nested(w.precision);
  if ((count <= 2 && !nibbles) || next.panel >= of.panels()) return {};
  const size_t steps = tiles * (w.cols / 16);
  const LinesAhead data = upper_ahead(of, steps, next.panel, some);
  if (of.low == nullptr) return {data, {}};
  if (some > of.panels() - next.panel) some = of.panels() - next.panel;
  return {data, {of.low + next.panel * of.low_bytes, some * of.low_bytes, steps}};
}

}  // namespace ernie::ERNIE_VARIANT
