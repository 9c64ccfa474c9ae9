// One step of the decoder, from token ids to answers: ERNIE 4.5 dense and mixture of experts.
//
// A layer is five parallel regions: [norm, query-key-value, rotation, cache write] [attention] [output, residual]
// [norm, gate and up, SwiGLU] [down, residual]; a mixture of experts adds the router and runs the last two over all
// chosen experts at once. Rows are normed and quantised before the region, by the calling thread when they are few.
#pragma once

#include <algorithm>
#include <atomic>
#include <deque>
#include <vector>

#include "model/model.h"
#include "model/profile.h"

namespace ernie {

class StepRun {
 public:
  StepRun(const Config& config, const Kernels& kernels, ThreadPool& pool, const Weights& weights, const KvCache& cache,
          Scratch& scratch, Profile* profile);

  // The cache already has room for the batch's tokens. Different threads may do different parts, one after another.
  void begin(const std::vector<StepInput>& batch);
  bool advance();  // by a layer; false once all are computed
  void end(const std::vector<StepInput>& batch, std::vector<StepOutput>& outputs);

  // Computes positions of the predicting layer: those from `firsts[i]` on, whose `ids` are the tokens that follow each.
  // With `rows` 1 the last one guesses, and its output is kept as the next position's hidden state if there is room.
  void predict(const std::vector<StepInput>& batch, const std::vector<size_t>& firsts, std::vector<StepOutput>& outputs);

 private:
  // The new tokens of one sequence.
  struct Piece {
    size_t first_token, tokens, first_position;
    std::vector<const uint8_t*> pages;
  };
  // A sequence's spans that are attended to in parallel; `done` of them are.
  struct Split {
    explicit Split(float* memory) : partials(memory) {}
    float* partials;
    std::atomic<size_t> done{0};
  };
  // `tokens` tokens of a piece from `first` on, against `spans` spans of keys from `span` on.
  struct AttentionTask {
    const Piece* piece;
    size_t head, first, tokens, span, spans;
    Split* split;  // null: takes all spans
  };
  struct Slot {
    uint32_t token, expert;
    float weight;
  };
  // A position that is answered for: row `index` of a step's answers, with the memory that hidden states or logits go to.
  struct AnswerRow {
    size_t token;
    float* hidden;
    float* logits;
    size_t step, index;
  };
  // A panel of the head that may hold one of a row's best logits, where its logits go, and whether bounds were found.
  struct KeptPanel {
    size_t row, panel;
    float* logits;
    bool bounded;
  };

  template <typename Body>
  void for_each(size_t count, const Body& body);
  size_t rows_per_task(size_t tasks_across, size_t rows) const;
  template <typename Epilogue>
  void multiply(const Matrix& w, const Rows& x, size_t rows, size_t panels_per_task, const Epilogue& epilogue);
  template <typename Epilogue>
  void multiply_block(const Matrix& w, const Rows& x, size_t first, size_t rows, size_t panel, size_t panels, Next next,
                      int thread, const Epilogue& epilogue);

  void place_tokens(const std::vector<StepInput>& batch);
  void place(int64_t sequence, size_t first, size_t tokens);
  void embed(const std::vector<StepInput>& batch);
  void turn_positions();

  void keep_hidden();
  void store_hidden(size_t token, uint8_t* to) const;
  void load_hidden(const uint8_t* from, float* row) const;
  void pair_tokens();
  void norm_rows(const float* weight, const Matrix& next);
  Rows grouped(const Rows& rows, const Matrix& w) const;

  void attention(size_t layer);
  void project_qkv(size_t layer);
  void write_head(size_t layer, size_t head, size_t token, float* values);
  uint8_t* query(size_t head, size_t token) const;
  void plan_attention();
  void attend(size_t layer);
  Attended attended(const AttentionTask& task, int thread) const;
  Attended partial(const AttentionTask& task, float* memory) const;
  void attend_span(size_t layer, const AttentionTask& task, size_t span, const Attended& to, int thread);
  void attend_in_turn(size_t layer, const AttentionTask& task, int thread);
  void attend_part(size_t layer, const AttentionTask& task, int thread);

  void dense_ffn(const FeedForward& ffn);
  void write_inner(const Matrix& down, const Rows& inner, size_t row, size_t panel, size_t panels, const float* tile);
  void add_to_residual(const Matrix& w, const Rows& x);

  void experts_ffn(const Layer& layer);
  void route(const Layer& layer);
  void score_experts(const Matrix& router);
  void choose(const Layer& layer, size_t token);
  void sort_slots();
  void gather_slots(const Matrix& w);
  template <typename Epilogue>
  void multiply_experts(const Layer& layer, PackedMatrix FeedForward::*which, const Rows& x, size_t panels_per_task,
                        const Epilogue& epilogue);
  void combine_slots();
  size_t active_experts() const;

  // Ends a part of the step in the profile, if there is one.
  void mark(Part part, size_t bytes = 0) {
    if (profile_ != nullptr) profile_->mark(part, bytes);
  }
  size_t cache_bytes() const;

  void answer(const std::vector<StepInput>& batch, std::vector<StepOutput>& outputs);
  // False if it is not the way to draw for these `count` rows; nothing has changed then.
  bool draw_from_bounds(const std::vector<StepInput>& batch, const std::vector<AnswerRow>& rows, size_t count,
                        const Rows& input, std::vector<StepOutput>& outputs);
  void bound_head(const std::vector<StepInput>& batch, const std::vector<AnswerRow>& rows, const std::vector<size_t>& bounded,
                  const Rows& input);
  std::vector<KeptPanel> keep_panels(const std::vector<StepInput>& batch, const std::vector<AnswerRow>& rows, size_t count,
                                     const std::vector<size_t>& bounded);
  bool bound_allowed(const Select& select, size_t row, bool is_bounded, std::vector<float>& lower,
                     std::vector<float>& upper) const;
  bool multiply_kept(const std::vector<KeptPanel>& kept, const Rows& input);
  void draw_kept(const std::vector<StepInput>& batch, const std::vector<AnswerRow>& rows, size_t count,
                 const std::vector<KeptPanel>& kept, std::vector<StepOutput>& outputs);

  static constexpr size_t kSerialRows = 8;
  static constexpr size_t kTasksPerThread = 8;  // threads then wait for one another at most an eighth of a region

  const Config& config_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  const Weights& weights_;
  const KvCache& cache_;
  Scratch& scratch_;
  Profile* profile_;

  size_t tokens_ = 0, layers_done_ = 0;
  std::vector<Piece> pieces_;
  std::vector<size_t> positions_;
  std::vector<uint8_t*> token_pages_;
  std::deque<Split> splits_;
  std::vector<AttentionTask> attention_tasks_;
  std::vector<Slot> slots_;               // [tokens][k] as chosen, expert ascending
  std::vector<uint32_t> order_;           // slots sorted by expert
  std::vector<uint32_t> place_;           // where in `order_` each slot is
  std::vector<uint32_t> expert_begin_;    // [experts + 1] into `order_`
};

// body(row) for every row; below kSerialRows a parallel region would cost more than it saves.
template <typename Body>
void StepRun::for_each(size_t count, const Body& body) {
  if (count < kSerialRows) {
    for (size_t i = 0; i < count; ++i) body(i);
  } else {
    pool_.run(count, [&](size_t i, int) { body(i); });
  }
}

// Multiplies rows [first, first + rows) by some panels, a block of rows at a time, and gives each row of each block to
// epilogue(row, tile), where `tile` holds the panels' values of that row. `next` is a guess at the panel that this thread
// takes afterwards.
template <typename Epilogue>
void StepRun::multiply_block(const Matrix& w, const Rows& x, size_t first, size_t rows, size_t panel, size_t panels,
                             Next next, int thread, const Epilogue& epilogue) {
  float* tile = scratch_.tile(thread);
  const size_t stride = panels * kPanelRows;
  for (size_t at = 0; at < rows; at += Scratch::kRowsPerBlock) {
    const size_t count = std::min(Scratch::kRowsPerBlock, rows - at);
    const Next wanted = at + count < rows ? Next(panel) : next;
    kernels_.linear(w, x, first + at, count, panel, panels, wanted, tile, stride, scratch_.linear(thread));
    for (size_t r = 0; r < count; ++r) epilogue(first + at + r, tile + r * stride);
  }
}

// All of a matrix, in parallel over its panels and, where there are more threads than those keep busy, over blocks of
// rows: epilogue(row, panel, panels, tile).
template <typename Epilogue>
void StepRun::multiply(const Matrix& w, const Rows& x, size_t rows, size_t panels_per_task, const Epilogue& epilogue) {
  const size_t across = div_up(w.panels(), panels_per_task);
  const size_t rows_each = rows_per_task(across, rows);
  const size_t parts = div_up(rows, rows_each);
  pool_.run_neighbours(across * parts, [&](size_t task, int thread) {  // which read the same weights, or the next
    const size_t panel = task / parts * panels_per_task;
    const size_t panels = std::min(panels_per_task, w.panels() - panel);
    const size_t first = task % parts * rows_each;
    const size_t next = (task + 1) / parts * panels_per_task;
    multiply_block(w, x, first, std::min(rows_each, rows - first), panel, panels, next, thread,
                   [&](size_t row, float* tile) { epilogue(row, panel, panels, tile); });
  });
}

}  // namespace ernie
