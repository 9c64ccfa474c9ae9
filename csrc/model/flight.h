// One step under way, done in one piece or begun by another thread than ends it.
#pragma once

#include <utility>
#include <vector>

#include "model/step.h"

namespace ernie {

struct Flight {
  Flight(std::vector<StepInput> steps, std::vector<StepOutput> answers, StepRun computation)
      : batch(std::move(steps)), outputs(std::move(answers)), run(std::move(computation)) {}

  std::vector<StepInput> batch;
  std::vector<StepOutput> outputs;
  std::vector<KvCache::Growth> growth;  // refers to `batch`
  StepRun run;
  bool begun = false;

  // Does a layer or the like; false once all layers are computed.
  bool advance() {
    if (begun) return run.advance();
    run.begin(batch);
    return begun = true;
  }
};

}  // namespace ernie
