// From logits that are known to be sound to one id. Internal to select.cc.
#pragma once

#include "kernels/select/select.h"

namespace ernie {

// Whether best_of is quick, and its candidates are few enough to sort.
bool is_few(size_t count, size_t n);

// The `count` best of n logits, in no order, into scratch.candidates; scratch.block_tops as scan gives them. A NaN ranks last.
void best_of(const float* logits, size_t n, size_t count, SelectScratch& scratch);

// Steps 4 and 5 of the definition over n logits of which `top` is the largest, as scan gives it; or over
// scratch.candidates, which hold the top_k best alone.
int32_t draw_dense(const SelectKernels& kernels, const Select& select, const float* logits, size_t n, float top, double u,
                   SelectScratch& scratch);
int32_t draw_candidates(const SelectKernels& kernels, const Select& select, double u, SelectScratch& scratch);

}  // namespace ernie
