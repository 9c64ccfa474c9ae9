#include "model/weights.h"

#include <algorithm>
#include <stdexcept>

namespace ernie {
namespace {

void expect(const Source& source, size_t rows, size_t cols, const char* name) {
  if (source.rows == rows && source.cols == cols) return;
  throw std::invalid_argument(std::string(name) + " has shape [" + std::to_string(source.rows) + ", " +
                              std::to_string(source.cols) + "], expected [" + std::to_string(rows) + ", " +
                              std::to_string(cols) + "]");
}

// Rows of `heads` heads of `d` rows each, every head padded to a multiple of 16.
void append_heads(std::vector<SourceRow>* map, int source, size_t heads, size_t d) {
  for (size_t h = 0; h < heads; ++h)
    for (size_t i = 0; i < round_up(d, 16); ++i) map->push_back(i < d ? SourceRow{source, h * d + i} : SourceRow{});
}

std::vector<int32_t> head_cols(size_t heads, size_t d) {
  std::vector<int32_t> map;
  for (size_t h = 0; h < heads; ++h)
    for (size_t i = 0; i < round_up(d, 16); ++i) map.push_back(i < d ? static_cast<int32_t>(h * d + i) : -1);
  return map;
}

// Sixteen rows of gate (source 0), the same sixteen of up (source 1), and so on.
std::vector<SourceRow> alternate_rows(size_t width) {
  std::vector<SourceRow> map;
  for (size_t start = 0; start < width; start += kPanelRows)
    for (int source : {0, 1})
      for (size_t i = start; i < start + kPanelRows; ++i) map.push_back(i < width ? SourceRow{source, i} : SourceRow{});
  return map;
}

// The experts of a layer, shared ones too, read one prepared input.
void check_same_input(const FeedForward& one, const FeedForward& other) {
  if (one.gate_up.bytes() == 0) return;
  if (one.gate_up.exact != other.gate_up.exact || one.gate_up.view.precision != other.gate_up.view.precision)
    throw std::invalid_argument("the experts of a layer must have the same precision and exact columns in gate and up");
}

void check_same_input(const Layer& layer, const FeedForward& added) {
  if (!layer.moe) return;
  check_same_input(layer.ffn, added);
  for (const FeedForward& expert : layer.experts) check_same_input(expert, added);
}

}  // namespace

Weights::Weights(const Config& config, const Kernels& kernels, ThreadPool& pool)
    : config_(config), kernels_(kernels), pool_(pool), layers_(config.kv_layers()) {
  for (size_t i = 0; i < config.layers; ++i) {
    layers_[i].moe = config.moe_layers[i];
    if (layers_[i].moe) layers_[i].experts.resize(config.experts);
  }
  name_slots();
}

// Working memory is laid out for the precision and the groups that the model was made with.
void Weights::check_codes(const Source& source, size_t group) const {
  if (source.codes == nullptr) return;
  if (!is_quantised(config_.precision)) throw std::invalid_argument("the model was not made for quantised matrices");
  if (group == 0) throw std::invalid_argument("the embedding and the router are never quantised");
  if (source.codes->group % group == 0) return;
  throw std::invalid_argument("a quantised matrix has groups of " + std::to_string(source.codes->group) +
                              ", no multiple of the " + std::to_string(group) + " that the model was made for");
}

Layer& Weights::layer(size_t index) {
  if (index >= layers_.size()) throw std::invalid_argument("layer " + std::to_string(index) + " does not exist");
  return layers_[index];
}

PackedMatrix Weights::pack_plain(Precision precision, size_t group, const Source& source, size_t rows, size_t cols,
                                 const char* name) {
  expect(source, rows, cols, name);
  check_codes(source, group);
  return pack(precision, Config::groups(precision, group), {source}, plain_rows(rows), plain_cols(cols), kernels_, pool_);
}

AlignedBuffer Weights::pack_norm(const Source& norm) const {
  expect(norm, 1, config_.hidden, "norm");
  if (norm.codes != nullptr) throw std::invalid_argument("norms are never quantised");
  AlignedBuffer buffer(config_.padded_hidden() * sizeof(float));
  for (size_t i = 0; i < config_.hidden; ++i) reinterpret_cast<float*>(buffer.data())[i] = norm.at(0, i);
  return buffer;
}

// Multi-token prediction is rounded to nearest, which 4 bits stand less well, and is small beside the model.
Precision Weights::body_precision(size_t index) const {
  return index == config_.layers && is_quantised(config_.precision) ? Precision::int8 : config_.precision;
}

FeedForward Weights::pack_ffn(Precision precision, const Source& gate, const Source& up, const Source& down, size_t width) {
  expect(gate, width, config_.hidden, "gate_proj");
  expect(up, width, config_.hidden, "up_proj");
  check_codes(gate, config_.group);
  FeedForward ffn;
  ffn.gate_up = pack(precision, Config::groups(precision, config_.group), {gate, up}, alternate_rows(width),
                     plain_cols(config_.hidden), kernels_, pool_);
  ffn.down = pack_plain(precision, config_.down_group, down, config_.hidden, width, "down_proj");
  return ffn;
}

void Weights::set_embedding(const Source& table) {
  // Read one row at a time, never multiplied: int8 would save memory and cost accuracy at the very first step.
  const Precision precision = config_.precision == Precision::fp32 ? Precision::fp32 : Precision::bf16;
  embedding_ = pack_plain(precision, 0, table, config_.vocab, config_.hidden, "embed_tokens");
}

void Weights::set_head(const Source& head) {
  head_ = pack_plain(config_.head_precision(), config_.head_group, head, config_.vocab, config_.hidden, "lm_head");
}

void Weights::set_final_norm(const Source& norm) { final_norm_ = pack_norm(norm); }

void Weights::set_norms(size_t index, const Source& input, const Source& post) {
  Layer& to = layer(index);
  AlignedBuffer before = pack_norm(input), after = pack_norm(post);
  to.input_norm = std::move(before), to.post_norm = std::move(after);
}

void Weights::set_attention(size_t index, const Source& q, const Source& k, const Source& v, const Source& o) {
  Layer& to = layer(index);
  const size_t d = config_.head_dim;
  expect(q, config_.heads * d, config_.hidden, "q_proj");
  expect(k, config_.kv_heads * d, config_.hidden, "k_proj");
  expect(v, config_.kv_heads * d, config_.hidden, "v_proj");
  expect(o, config_.hidden, config_.heads * d, "o_proj");
  check_codes(q, config_.group);
  check_codes(o, config_.group);
  std::vector<SourceRow> rows;
  append_heads(&rows, 0, config_.heads, d);
  append_heads(&rows, 1, config_.kv_heads, d);
  append_heads(&rows, 2, config_.kv_heads, d);
  const Precision precision = body_precision(index);
  const Groups groups = Config::groups(precision, config_.group);
  PackedMatrix out =
      pack(precision, groups, {o}, plain_rows(config_.hidden), head_cols(config_.heads, d), kernels_, pool_);
  to.qkv = pack(precision, groups, {q, k, v}, rows, plain_cols(config_.hidden), kernels_, pool_);
  to.o = std::move(out);
}

void Weights::set_ffn(size_t index, const Source& gate, const Source& up, const Source& down) {
  const size_t width = layer(index).moe ? config_.shared_intermediate() : config_.intermediate;
  if (width == 0) throw std::invalid_argument("layer " + std::to_string(index) + " has no shared experts");
  FeedForward ffn = pack_ffn(body_precision(index), gate, up, down, width);
  check_same_input(layer(index), ffn);
  layer(index).ffn = std::move(ffn);
}

void Weights::set_router(size_t index, const Source& weight, const Source& bias) {
  Layer& to = layer(index);
  if (!to.moe) throw std::invalid_argument("layer " + std::to_string(index) + " has no router");
  expect(bias, 1, config_.experts, "e_score_correction_bias");
  if (bias.codes != nullptr) throw std::invalid_argument("the router's bias is never quantised");
  to.router = pack_plain(Precision::fp32, 0, weight, config_.experts, config_.hidden, "router");
  to.router_bias.resize(config_.experts);
  for (size_t e = 0; e < config_.experts; ++e) to.router_bias[e] = bias.at(0, e);
}

void Weights::set_expert(size_t index, size_t expert, const Source& gate, const Source& up, const Source& down) {
  Layer& to = layer(index);
  if (expert >= to.experts.size()) throw std::invalid_argument("expert " + std::to_string(expert) + " does not exist");
  FeedForward ffn = pack_ffn(config_.precision, gate, up, down, config_.expert_intermediate);
  check_same_input(to, ffn);
  to.experts[expert] = std::move(ffn);
}

void Weights::set_multi_token(const Source& projection) {
  if (!config_.multi_token) throw std::invalid_argument("the model was made without multi-token prediction");
  expect(projection, config_.hidden, 2 * config_.hidden, "mtp_linear_proj");
  check_codes(projection, config_.group);
  std::vector<int32_t> cols;
  for (size_t part = 0; part < 2; ++part)
    for (size_t i = 0; i < config_.padded_hidden(); ++i)
      cols.push_back(i < config_.hidden ? static_cast<int32_t>(part * config_.hidden + i) : -1);
  const Precision precision = body_precision(config_.layers);
  multi_token_.projection = pack(precision, Config::groups(precision, config_.group), {projection},
                                 plain_rows(config_.hidden), cols, kernels_, pool_);
}

void Weights::set_multi_token_norms(const Source& embedding, const Source& hidden) {
  if (!config_.multi_token) throw std::invalid_argument("the model was made without multi-token prediction");
  AlignedBuffer first = pack_norm(embedding), second = pack_norm(hidden);
  multi_token_.emb_norm = std::move(first), multi_token_.hidden_norm = std::move(second);
}

void Weights::check_complete() const {
  const auto need = [](const AlignedBuffer& buffer, const std::string& name) {
    if (buffer.size() == 0) throw std::invalid_argument(name + " was not set");
  };
  const auto need_matrix = [](const PackedMatrix& matrix, const std::string& name) {
    if (matrix.bytes() == 0) throw std::invalid_argument(name + " was not set");
  };
  need(final_norm_, "the final norm");
  need_matrix(head_, "the head");
  if (!config_.tied) need_matrix(embedding_, "the embedding");
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& l = layers_[i];
    const std::string at = i < config_.layers ? " of layer " + std::to_string(i) : " of multi-token prediction";
    need(l.input_norm, "the norms" + at);
    need_matrix(l.qkv, "the attention" + at);
    need_matrix(l.o, "the attention" + at);
    if (!l.moe || config_.shared_experts > 0) {
      need_matrix(l.ffn.gate_up, "the feed-forward network" + at);
      need_matrix(l.ffn.down, "the feed-forward network" + at);
    }
    if (l.moe) need_matrix(l.router, "the router" + at);
    for (const FeedForward& e : l.experts) {
      need_matrix(e.gate_up, "an expert" + at);
      need_matrix(e.down, "an expert" + at);
      check_same_input(l.ffn, e);
      check_same_input(l.experts[0], e);
    }
  }
  if (!config_.multi_token) return;
  need(multi_token_.emb_norm, "the norms of multi-token prediction");
  need_matrix(multi_token_.projection, "the projection of multi-token prediction");
}

size_t Weights::bytes() const {
  const auto ffn_bytes = [](const FeedForward& f) { return f.gate_up.bytes() + f.down.bytes(); };
  size_t sum = head_.bytes() + embedding_.bytes() + final_norm_.size();
  sum += multi_token_.projection.bytes() + multi_token_.emb_norm.size() + multi_token_.hidden_norm.size();
  for (const Layer& l : layers_) {
    sum += l.input_norm.size() + l.post_norm.size() + l.qkv.bytes() + l.o.bytes() + ffn_bytes(l.ffn) +
           l.router.bytes();
    for (const FeedForward& e : l.experts) sum += ffn_bytes(e);
  }
  return sum;
}

void Weights::embed(size_t id, float* out) const {
  unpack_row(config_.tied ? head_.view : embedding_.view, id, config_.padded_hidden(), out);
}

}  // namespace ernie
