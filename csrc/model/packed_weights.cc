// Weights as they lie packed: what a file of them is written from and mapped into.
#include <cstdint>
#include <stdexcept>

#include "model/weights.h"

namespace ernie {
namespace {

void require(bool ok, const std::string& name, const char* what) {
  if (!ok) throw std::invalid_argument("packed matrix '" + name + "': " + what);
}

}  // namespace

void Weights::name_ffn(const std::string& prefix, FeedForward& ffn, size_t width) {
  const size_t hidden = config_.padded_hidden();
  const size_t padded = round_up(width, kPanelRows);
  slots_[prefix + "gate_up"] = {&ffn.gate_up, 2 * padded, hidden, config_.group, Slot::Kind::body};
  slots_[prefix + "down"] = {&ffn.down, hidden, padded, config_.down_group, Slot::Kind::body};
}

void Weights::name_slots() {
  const size_t hidden = config_.padded_hidden();
  const size_t vocab = round_up(config_.vocab, kPanelRows);
  const size_t heads = config_.heads * config_.padded_head();
  const size_t kv = config_.kv_heads * config_.padded_head();
  slots_["head"] = {&head_, vocab, hidden, config_.head_group, Slot::Kind::head};
  if (config_.multi_token)
    slots_["mtp.projection"] = {&multi_token_.projection, hidden, 2 * hidden, config_.group, Slot::Kind::body};
  if (!config_.tied) slots_["embedding"] = {&embedding_, vocab, hidden, 0, Slot::Kind::embedding};
  for (size_t i = 0; i < layers_.size(); ++i) {
    Layer& l = layers_[i];
    const std::string at = i < config_.layers ? "layers." + std::to_string(i) + "." : "mtp.";
    slots_[at + "qkv"] = {&l.qkv, heads + 2 * kv, hidden, config_.group, Slot::Kind::body};
    slots_[at + "o"] = {&l.o, hidden, heads, config_.group, Slot::Kind::body};
    if (!l.moe) {
      name_ffn(at, l.ffn, config_.intermediate);
      continue;
    }
    if (config_.shared_experts > 0) name_ffn(at, l.ffn, config_.shared_intermediate());
    slots_[at + "router"] = {&l.router, round_up(config_.experts, kPanelRows), hidden, 0, Slot::Kind::router};
    for (size_t e = 0; e < l.experts.size(); ++e)
      name_ffn(at + "experts." + std::to_string(e) + ".", l.experts[e], config_.expert_intermediate);
  }
}

const Weights::Slot& Weights::slot(const std::string& name) const {
  const auto found = slots_.find(name);
  if (found == slots_.end()) throw std::invalid_argument("the model has no packed matrix '" + name + "'");
  return found->second;
}

std::vector<std::string> Weights::matrix_names() const {
  std::vector<std::string> names;
  for (const auto& [name, slot] : slots_) names.push_back(name);
  return names;
}

const PackedMatrix& Weights::matrix(const std::string& name) const {
  const PackedMatrix& found = *slot(name).to;
  require(found.bytes() > 0, name, "is not set");
  return found;
}

PackedMatrix Weights::take(const std::string& name) {
  require(slot(name).to->storage.size() > 0, name, "is not set, or its panels belong to somebody else");
  PackedMatrix taken = std::move(*slot(name).to);
  *slot(name).to = PackedMatrix{};
  return taken;
}

void Weights::set_packed(const std::string& name, Precision precision, size_t group, std::vector<int32_t> exact,
                         const uint8_t* data, size_t bytes) {
  const Slot& to = slot(name);
  const bool may_be_quantised = to.kind == Slot::Kind::body || to.kind == Slot::Kind::head;
  if (is_quantised(precision)) {
    require(may_be_quantised && is_quantised(config_.precision), name, "must not be quantised");
    require(group > 0 && group <= kMaxGroup && group % to.group == 0, name, "has groups that the model was not made for");
    const char* problem = exact_columns_problem(exact.data(), exact.size(), to.cols);
    require(problem == nullptr, name, problem);
  } else {
    const Precision plain = to.kind == Slot::Kind::router ? Precision::fp32 : precision;
    require(!may_be_quantised || precision == config_.precision, name, "must have the model's precision");
    require(precision == plain && exact.empty(), name, "must be float32 without exact columns");
  }
  PackedMatrix matrix;
  matrix.exact = std::move(exact);
  matrix.view = describe(precision, {to.group, group}, to.rows, to.cols, matrix.exact.size());
  matrix.view.set_data(data);
  matrix.view.exact = matrix.exact.data();
  require(bytes == matrix.bytes(), name, "has the wrong number of bytes");
  require(reinterpret_cast<uintptr_t>(data) % kAlign == 0, name, "is not aligned to 64 bytes");
  *to.to = std::move(matrix);
}

}  // namespace ernie
