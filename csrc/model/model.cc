#include "model/model.h"

#include <unistd.h>

#include <cstring>
#include <set>
#include <stdexcept>
#include <utility>

#include "model/flight.h"

namespace ernie {
namespace {

const Config& checked(const Config& config) {
  config.check();
  return config;
}

}  // namespace

Model::Model(const Config& config, Isa isa, int threads)
    : config_(checked(config)),
      kernels_(kernels_for(isa)),
      pool_(ThreadPool::shared(threads)),
      weights_(config_, kernels_, *pool_),
      cache_(config_),
      process_(getpid()) {}

void Model::check_process() const {
  if (getpid() != process_)
    throw std::runtime_error("the model was loaded before this process was forked; load it in the child instead");
}

Weights& Model::weights() {
  check_process();
  const std::lock_guard<std::mutex> guard(mutex_);
  if (scratch_) throw std::runtime_error("the model's weights are complete and cannot be changed");
  return weights_;
}

void Model::finish() {
  check_process();
  const std::lock_guard<std::mutex> guard(mutex_);
  weights_.check_complete();
  auto scratch = std::make_unique<Scratch>(config_, pool_->threads());
  scratch->allocate();
  scratch_ = std::move(scratch);
}

std::unique_lock<std::mutex> Model::lock() {
  check_process();  // first: in a child, the mutex may be held by a thread that was left behind
  std::unique_lock<std::mutex> guard(mutex_);
  if (!scratch_) throw std::runtime_error("the model's weights are not complete");
  if (flight_) throw std::invalid_argument("a step is under way: ask for its result, or close it, before anything else");
  return guard;
}

int64_t Model::open() {
  auto guard = lock();
  return cache_.open();
}

void Model::free(int64_t sequence) {
  auto guard = lock();
  cache_.free(sequence);
}

int64_t Model::fork(int64_t sequence, size_t length) {
  auto guard = lock();
  return cache_.fork(sequence, length);
}

void Model::truncate(int64_t sequence, size_t length) {
  auto guard = lock();
  cache_.truncate(sequence, length);
}

void Model::park(int64_t sequence) {
  auto guard = lock();
  cache_.park(sequence);
}

void Model::claim(int64_t sequence, size_t tokens) {
  auto guard = lock();
  const Sequence& claimed = cache_.at(sequence);
  if (claimed.parked) throw std::invalid_argument("a parked sequence takes no tokens; fork it");
  if (tokens > config_.max_context - claimed.length)
    throw std::invalid_argument("a sequence of " + std::to_string(claimed.length) + " tokens cannot take " +
                                std::to_string(tokens) + " more: the context holds " + std::to_string(config_.max_context));
  const size_t held = claimed.pages.size();
  cache_.extend({{sequence, tokens}});
  for (size_t i = held; i < claimed.pages.size(); ++i) std::memset(cache_.page(claimed.pages[i]), 0, cache_.page_bytes());
}

size_t Model::length(int64_t sequence) {
  auto guard = lock();
  return cache_.at(sequence).length;
}

Profile Model::profile(bool on) {
  auto guard = lock();
  profiling_ = on;
  return std::exchange(profile_, Profile());
}

size_t Model::free_tokens() {
  auto guard = lock();
  return cache_.free_pages() * kPageTokens;
}

size_t Model::used_tokens() {
  auto guard = lock();
  return cache_.used_pages() * kPageTokens;
}

void Model::check(const std::vector<StepInput>& batch) const {
  std::set<int64_t> once;
  size_t tokens = 0;
  for (const StepInput& step : batch) {
    const size_t length = cache_.at(step.sequence).length;
    if (cache_.at(step.sequence).parked) throw std::invalid_argument("a parked sequence takes no tokens; fork it");
    if (!once.insert(step.sequence).second) throw std::invalid_argument("a sequence is twice in one batch");
    if (step.ids.empty()) throw std::invalid_argument("a step needs at least one token");
    if (step.rows > step.ids.size()) throw std::invalid_argument("more rows than tokens were asked for");
    if (length + step.ids.size() > config_.max_context) throw std::invalid_argument("the context is too short");
    for (int32_t id : step.ids)
      if (id < 0 || static_cast<size_t>(id) >= config_.vocab)
        throw std::invalid_argument("token id " + std::to_string(id) + " is not in [0, " + std::to_string(config_.vocab) + ")");
    if (!step.late) check_select(step.select, config_.vocab);
    tokens += step.ids.size();
  }
  if (tokens > config_.max_step_tokens) throw std::invalid_argument("too many tokens in one step");
}

std::vector<StepOutput> Model::allocate(const std::vector<StepInput>& batch) {
  std::vector<StepOutput> outputs(batch.size());
  for (size_t i = 0; i < batch.size(); ++i) {
    const StepInput& step = batch[i];
    outputs[i].output = step.output, outputs[i].rows = step.rows;
    if (step.output == Output::hidden) outputs[i].owned.reset(new float[step.rows * config_.hidden]);
    if (step.output == Output::logits) outputs[i].owned.reset(new float[step.rows * config_.vocab]);
    if (step.output == Output::select) outputs[i].drawn.resize(step.rows);
    outputs[i].values = outputs[i].owned.get();
  }
  lend_drawn_rows(batch, outputs);
  return outputs;
}

void Model::lend_drawn_rows(const std::vector<StepInput>& batch, std::vector<StepOutput>& outputs) {
  size_t rows = 0;
  for (const StepInput& step : batch)
    if (step.output == Output::select) rows += step.rows;
  const size_t bytes = rows * config_.vocab * sizeof(float);
  if (drawn_rows_.size() < bytes) {
    drawn_rows_ = AlignedBuffer();  // first, so that both are never held
    drawn_rows_ = AlignedBuffer(bytes);
  }
  float* values = reinterpret_cast<float*>(drawn_rows_.data());
  for (size_t i = 0; i < batch.size(); ++i) {
    if (batch[i].output != Output::select) continue;
    outputs[i].values = values;
    values += batch[i].rows * config_.vocab;
  }
}

}  // namespace ernie
