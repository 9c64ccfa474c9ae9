#include "model/flight.h"

#include <stdexcept>
#include <utility>

#include "base/float_mode.h"

namespace ernie {
namespace {

// What is to be drawn, of the steps that came without.
void complete(std::vector<StepInput>& batch, std::vector<std::pair<size_t, Select>>& selects, size_t vocab) {
  for (auto& [index, select] : selects) {
    if (index >= batch.size() || !batch[index].late)
      throw std::invalid_argument("step " + std::to_string(index) + " of the batch lacks no select");
    check_select(select, vocab);
    batch[index].select = std::move(select);
    batch[index].late = false;
  }
  for (size_t i = 0; i < batch.size(); ++i)
    if (batch[i].late) throw std::invalid_argument("step " + std::to_string(i) + " of the batch lacks its select");
}

}  // namespace

Model::~Model() {
  if (!flight_) return;
  try {
    helper_.take_over();
  } catch (...) {  // of a step that nobody asks about any more
  }
}

std::unique_ptr<Flight> Model::take_off(std::vector<StepInput> batch) {
  check(batch);
  std::vector<StepOutput> outputs = allocate(batch);
  auto flight = std::make_unique<Flight>(
      std::move(batch), std::move(outputs),
      StepRun(config_, kernels_, *pool_, weights_, cache_, *scratch_, profiling_ ? &profile_ : nullptr));
  for (const StepInput& step : flight->batch)
    flight->growth.push_back({step.sequence, step.ids.size(), config_.multi_token ? &step.ids : nullptr});
  cache_.extend(flight->growth);
  return flight;
}

std::vector<StepOutput> Model::land(std::unique_ptr<Flight> flight, std::vector<std::pair<size_t, Select>> selects) {
  try {
    complete(flight->batch, selects, config_.vocab);
    helper_.take_over();
    if (flight->batch.empty()) return {};
    while (flight->advance()) {
    }
    flight->run.end(flight->batch, flight->outputs);
  } catch (...) {
    give_up(*flight);
    throw;
  }
  return std::move(flight->outputs);
}

// Takes a step back that nobody asks about any more.
void Model::give_up(const Flight& flight) {
  try {
    helper_.take_over();
  } catch (...) {
  }
  for (const auto& grown : flight.growth) cache_.truncate(grown.id, cache_.at(grown.id).length - grown.tokens);
}

std::vector<StepOutput> Model::forward(std::vector<StepInput> batch) {
  auto guard = lock();
  const DefaultFloatMode mode;
  return land(take_off(std::move(batch)), {});
}

void Model::start(std::vector<StepInput> batch) {
  auto guard = lock();
  flight_ = take_off(std::move(batch));
  if (!flight_->batch.empty()) helper_.begin([flight = flight_.get()] { return flight->advance(); });
}

std::unique_lock<std::mutex> Model::lock_flight() {
  check_process();
  return std::unique_lock<std::mutex>(mutex_);
}

std::vector<StepOutput> Model::result(std::vector<std::pair<size_t, Select>> selects) {
  auto guard = lock_flight();
  if (!flight_) throw std::invalid_argument("no step was started, or its result was taken");
  const DefaultFloatMode mode;
  return land(std::move(flight_), std::move(selects));
}

void Model::abandon() {
  auto guard = lock_flight();
  if (!flight_) return;
  give_up(*std::exchange(flight_, nullptr));
}

}  // namespace ernie
