// Draws a token from a row of logits. The definition, in NumPy, is ernie_accel/engine/sampling.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/select/passes.h"

namespace ernie {

struct Select {
  double temperature = 0.0;
  size_t top_k = 0;
  double top_p = 1.0;
  double min_p = 0.0;
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  size_t vocab_limit = 0;
  std::vector<int32_t> seen, counts;
  std::vector<uint32_t> mask;
  int logprobs = -1;
  uint64_t seed = 0;

  bool greedy() const;
  // Whether the draw looks at raw logits only, and only at those that the mask allows.
  bool plain() const { return seen.empty() && logprobs < 0; }
  // How many of `vocab` ids may be drawn at most: the first ones.
  size_t limit(size_t vocab) const { return vocab_limit != 0 && vocab_limit < vocab ? vocab_limit : vocab; }
};

struct Drawn {
  int32_t token = -1;
  double logprob = 0.0;
  std::vector<std::pair<int32_t, double>> top;
};

struct Candidate {
  float logit;
  int32_t id;
  // The most probable first; among equals the lower id.
  bool operator<(const Candidate& other) const {
    return logit != other.logit ? logit > other.logit : id < other.id;
  }
};

// Memory of draws, kept from one to the next.
struct SelectScratch {
  std::vector<float> block_tops, order, raw, logits;
  std::vector<int64_t> weights, ranked;
  std::vector<uint16_t> ranks;
  std::vector<Candidate> candidates, some;
};

// Uniform in [0, 1), a function of its two arguments alone: Philox4x32-10 (Salmon et al. 2011) with the seed as key and
// the position as counter; 53 bits of the first two output words.
double uniform(uint64_t seed, uint64_t position);

// Throws std::invalid_argument if a field does not fit the vocabulary.
void check_select(const Select& select, size_t vocab);

// `logits` holds `vocab` values and is used as scratch: it is changed. Throws std::runtime_error if a token that may be
// drawn has the logit NaN or +inf, or if all have -inf.
Drawn select_row(const SelectKernels& kernels, const Select& select, float* logits, size_t vocab, uint64_t position,
                 SelectScratch& scratch);

// The draw from candidates alone, in any order: select.plain(), and they hold the top_k best that the mask allows (the
// best, if greedy; all of those, if top_k is 0).
// Throws as select_row does.
int32_t select_candidates(const SelectKernels& kernels, const Select& select, std::vector<Candidate>& candidates,
                          uint64_t position, SelectScratch& scratch);

// Throws what select_row does for a row of which that is known.
void check_row(Scanned row);

}  // namespace ernie
