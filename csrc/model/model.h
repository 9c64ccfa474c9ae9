// One model and its sequences: what backends/native/runner.py drives.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "base/helper.h"
#include "kernels/kernels.h"
#include "kernels/select/select.h"
#include "model/kv_cache.h"
#include "model/profile.h"
#include "model/scratch.h"
#include "model/weights.h"

namespace ernie {

enum class Output { none, logits, hidden, select };

struct StepInput {
  int64_t sequence = 0;
  std::vector<int32_t> ids;
  size_t rows = 0;  // answers for the last rows
  Output output = Output::none;
  Select select;
  bool late = false;  // `select` is given to `result`
};

// A sequence to draft for, and the token that follows those it holds.
struct DraftInput {
  int64_t sequence = 0;
  int32_t token = 0;
};

struct StepOutput {
  Output output = Output::none;
  size_t rows = 0;
  float* values = nullptr;  // logits [rows][vocab] or hidden [rows][hidden]
  std::unique_ptr<float[]> owned;  // what `values` points to, unless they are the model's own
  std::vector<Drawn> drawn;
};

struct Flight;

class Model {
 public:
  Model(const Config& config, Isa isa, int threads);
  ~Model();

  // To be filled by one thread. Throws std::runtime_error once they are complete.
  Weights& weights();
  const Weights& packed_weights() const { return weights_; }
  // Packed weights are complete; sequences may be opened.
  void finish();

  // These calls may come from any thread.
  int64_t open();
  void free(int64_t sequence);
  int64_t fork(int64_t sequence, size_t length);
  void truncate(int64_t sequence, size_t length);
  void park(int64_t sequence);
  // Lengthens a sequence without computing: its pages are taken and touched, their keys and values are zero. For measuring
  // how much memory a context takes.
  void claim(int64_t sequence, size_t tokens);
  size_t length(int64_t sequence);
  std::vector<StepOutput> forward(std::vector<StepInput> batch);

  // `forward` in two parts: another thread begins the step, and `result` goes on with it, from wherever that is. In between
  // all other calls throw std::invalid_argument but for these two. `selects` are those of late steps, by their place in the
  // batch. Where `result` throws, and after `abandon`, which is harmless if there is no step, sequences are as they were.
  void start(std::vector<StepInput> batch);
  std::vector<StepOutput> result(std::vector<std::pair<size_t, Select>> selects);
  void abandon();

  // `depth` guesses at what comes after each token; nothing is appended. Empty where a sequence is not caught up with yet.
  std::vector<std::vector<int32_t>> draft(const std::vector<DraftInput>& batch, size_t depth);

  // Begins a new profile of the steps to come, or ends profiling; returns the one that was being made.
  Profile profile(bool on);

  const Config& config() const { return config_; }
  size_t free_tokens();
  size_t used_tokens();
  size_t page_bytes() const { return cache_.page_bytes(); }
  size_t scratch_bytes() const { return scratch_ ? scratch_->bytes() : 0; }
  size_t weight_bytes() const { return weights_.bytes(); }

 private:
  void check_process() const;
  std::unique_lock<std::mutex> lock();
  std::unique_lock<std::mutex> lock_flight();
  void check(const std::vector<StepInput>& batch) const;
  std::unique_ptr<Flight> take_off(std::vector<StepInput> batch);
  std::vector<StepOutput> land(std::unique_ptr<Flight> flight, std::vector<std::pair<size_t, Select>> selects);
  void give_up(const Flight& flight);
  std::vector<StepOutput> allocate(const std::vector<StepInput>& batch);
  struct Round {
    std::vector<StepInput> inputs;
    std::vector<size_t> firsts, owners;
    void add(size_t owner, int64_t sequence, size_t first, std::vector<int32_t> following, bool guesses);
  };
  void check(const std::vector<DraftInput>& batch, size_t depth) const;
  void share_predicted(const std::vector<DraftInput>& batch, const std::vector<size_t>& lengths);
  static bool collide(const Sequence& a, size_t a_first, const Sequence& b, size_t b_first);
  Round catch_up(const std::vector<DraftInput>& batch, const std::vector<size_t>& lengths) const;
  void guess(const std::vector<DraftInput>& batch, size_t depth, std::vector<std::vector<int32_t>>& guesses);
  void run(const Round& round, std::vector<std::vector<int32_t>>& guesses);
  void lend_drawn_rows(const std::vector<StepInput>& batch, std::vector<StepOutput>& outputs);

  Config config_;
  const Kernels& kernels_;
  std::shared_ptr<ThreadPool> pool_;
  Weights weights_;
  KvCache cache_;
  bool profiling_ = false;
  Profile profile_;
  // Logits that never leave: kept, since fresh memory of this size costs a page fault for every 4 KB of every step.
  AlignedBuffer drawn_rows_;
  std::unique_ptr<Scratch> scratch_;  // once the weights are complete
  std::unique_ptr<Flight> flight_;  // a step between `start` and `result`
  Helper helper_;
  std::mutex mutex_;
  int process_;
};

}  // namespace ernie
