#include "model/step.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace ernie {

StepRun::StepRun(const Config& config, const Kernels& kernels, ThreadPool& pool, const Weights& weights,
                 const KvCache& cache, Scratch& scratch, Profile* profile)
    : config_(config), kernels_(kernels), pool_(pool), weights_(weights), cache_(cache), scratch_(scratch), profile_(profile) {}

void StepRun::begin(const std::vector<StepInput>& batch) {
  if (profile_ != nullptr) profile_->begin_step();
  place_tokens(batch);
  plan_attention();
  embed(batch);
  mark(Part::embed);
}

bool StepRun::advance() {
  if (layers_done_ == config_.layers) return false;
  const Layer& layer = weights_.layers()[layers_done_];
  attention(layers_done_);
  if (layer.moe) {
    experts_ffn(layer);
  } else {
    norm_rows(reinterpret_cast<const float*>(layer.post_norm.data()), layer.ffn.gate_up.view);
    dense_ffn(layer.ffn);
  }
  return ++layers_done_ < config_.layers;
}

void StepRun::end(const std::vector<StepInput>& batch, std::vector<StepOutput>& outputs) {
  if (config_.multi_token) keep_hidden();
  answer(batch, outputs);
}

void StepRun::place_tokens(const std::vector<StepInput>& batch) {
  for (const StepInput& step : batch)
    place(step.sequence, cache_.at(step.sequence).length - step.ids.size(), step.ids.size());
}

void StepRun::place(int64_t id, size_t first, size_t tokens) {
  const Sequence& sequence = cache_.at(id);
  Piece piece{tokens_, tokens, first, {}};
  for (uint32_t page : sequence.pages) piece.pages.push_back(cache_.page(page));
  for (size_t position = first; position < first + tokens; ++position) {
    positions_.push_back(position);
    token_pages_.push_back(cache_.page(sequence.pages[position / kPageTokens]));
  }
  tokens_ += tokens;
  pieces_.push_back(std::move(piece));
}

void StepRun::embed(const std::vector<StepInput>& batch) {
  std::vector<int32_t> ids;
  for (const StepInput& step : batch) ids.insert(ids.end(), step.ids.begin(), step.ids.end());
  for_each(tokens_, [&](size_t t) {
    weights_.embed(static_cast<size_t>(ids[t]), scratch_.x + t * config_.padded_hidden());
  });
  turn_positions();
}

// Rotations of every token's heads.
void StepRun::turn_positions() {
  const size_t half = config_.head_dim / 2;
  std::vector<float> frequency(half);
  for (size_t i = 0; i < half; ++i)
    frequency[i] = 1.0f / std::pow(config_.theta, static_cast<float>(2 * i) / static_cast<float>(config_.head_dim));
  for_each(tokens_, [&](size_t t) {
    for (size_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(positions_[t]) * frequency[i];
      scratch_.cos[t * half + i] = std::cos(angle);
      scratch_.sin[t * half + i] = std::sin(angle);
    }
  });
}

// The same buffer seen with the groups of the matrix that reads it.
Rows StepRun::grouped(const Rows& rows, const Matrix& w) const {
  Rows seen = rows;
  seen.groups = w.groups();
  return seen;
}

// Norms every row of the residual stream and prepares it for the matrix that comes next.
void StepRun::norm_rows(const float* weight, const Matrix& next) {
  const size_t width = config_.padded_hidden();
  const Rows input = grouped(scratch_.input, next);
  for_each(tokens_, [&](size_t t) {
    float* row = scratch_.norm + t * width;
    kernels_.rms_norm(scratch_.x + t * width, weight, config_.hidden, config_.eps, row);
    kernels_.prepare(next, row, 0, width, input, t);
  });
  mark(Part::norm);
}

// Rows that one task takes when a matrix's panels alone make `tasks_across` tasks: all, or some blocks of them.
size_t StepRun::rows_per_task(size_t tasks_across, size_t rows) const {
  const size_t wanted = div_up(kTasksPerThread * static_cast<size_t>(pool_.threads()), tasks_across);
  const size_t parts = std::min(wanted, div_up(rows, Scratch::kRowsPerBlock));
  return round_up(div_up(rows, parts), Scratch::kRowsPerBlock);
}

void StepRun::add_to_residual(const Matrix& w, const Rows& x) {
  const size_t width = config_.padded_hidden();
  multiply(w, x, tokens_, 4, [&](size_t token, size_t panel, size_t panels, const float* tile) {
    kernels_.add_scaled(scratch_.x + token * width + panel * kPanelRows, tile, 1.0f, panels * kPanelRows);
  });
}

// Panels come in pairs of gate and up; what they give is whole groups of the down projection's input.
void StepRun::write_inner(const Matrix& down, const Rows& inner, size_t row, size_t panel, size_t panels,
                          const float* tile) {
  float values[2 * 256];
  kernels_.swiglu(tile, panels / 2, values);
  kernels_.prepare(down, values, panel / 2 * kPanelRows, panels / 2 * kPanelRows, inner, row);
}

void StepRun::dense_ffn(const FeedForward& ffn) {
  const Matrix& gate_up = ffn.gate_up.view;
  const Matrix& down = ffn.down.view;
  const Rows inner = grouped(scratch_.inner, down);
  multiply(gate_up, grouped(scratch_.input, gate_up), tokens_, scratch_.panels_per_task(),
           [&](size_t token, size_t panel, size_t panels, const float* tile) {
             write_inner(down, inner, token, panel, panels, tile);
           });
  mark(Part::gate_up, ffn.gate_up.bytes());
  add_to_residual(down, inner);
  mark(Part::down, ffn.down.bytes());
}

}  // namespace ernie
