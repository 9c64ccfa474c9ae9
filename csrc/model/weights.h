// The packed weights of one model.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "kernels/linear/pack.h"
#include "model/config.h"

namespace ernie {

struct FeedForward {
  PackedMatrix gate_up;  // panels alternate: 16 rows of gate, the same 16 rows of up
  PackedMatrix down;
};

struct Layer {
  AlignedBuffer input_norm, post_norm;  // float32, padded
  PackedMatrix qkv;                     // query heads, key heads, value heads; each head padded to 16 rows
  PackedMatrix o;                       // columns as the padded query heads
  FeedForward ffn;                      // dense layer, or the shared experts of a MoE layer
  bool moe = false;
  PackedMatrix router;                  // always float32
  std::vector<float> router_bias;
  std::vector<FeedForward> experts;
};

// Beside its layer, which is the last one, what multi-token prediction has of its own.
struct MultiToken {
  AlignedBuffer emb_norm, hidden_norm;  // float32, padded
  PackedMatrix projection;              // columns: the embedding's, padded, then the hidden state's
};

// Takes the checkpoint's tensors one by one and packs them. Every shape is checked: std::invalid_argument, and nothing
// was set.
class Weights {
 public:
  Weights(const Config& config, const Kernels& kernels, ThreadPool& pool);

  void set_embedding(const Source& table);  // [vocab, hidden]; not called when tied
  void set_head(const Source& head);        // [vocab, hidden]; when tied, the embedding
  void set_final_norm(const Source& norm);
  void set_norms(size_t layer, const Source& input, const Source& post);
  void set_attention(size_t layer, const Source& q, const Source& k, const Source& v, const Source& o);
  void set_ffn(size_t layer, const Source& gate, const Source& up, const Source& down);
  void set_router(size_t layer, const Source& weight, const Source& bias);
  void set_expert(size_t layer, size_t expert, const Source& gate, const Source& up, const Source& down);
  // Its layer is number `layers` for the calls above.
  void set_multi_token(const Source& projection);  // [hidden, 2 hidden]
  void set_multi_token_norms(const Source& embedding, const Source& hidden);

  // Every matrix as it lies packed, by name: head, embedding, layers.N.qkv, .o, .gate_up, .down, .router,
  // layers.N.experts.E.gate_up and .down, mtp.projection, .qkv, .o, .gate_up, .down. (Norms and the router's bias are set from tensors.)
  std::vector<std::string> matrix_names() const;
  const PackedMatrix& matrix(const std::string& name) const;
  // Takes panels that were packed before, 64-byte aligned, which must outlive this object. They are checked for size, not
  // for content: any bytes are numbers.
  void set_packed(const std::string& name, Precision precision, size_t group, std::vector<int32_t> exact,
                  const uint8_t* data, size_t bytes);
  // Gives a packed matrix away, which is then not set: a file is written layer by layer without holding the model.
  PackedMatrix take(const std::string& name);

  // Throws std::invalid_argument naming what was not set.
  void check_complete() const;
  // Bytes of packed weights.
  size_t bytes() const;

  // With multi-token prediction, its layer is the last.
  const std::vector<Layer>& layers() const { return layers_; }
  const MultiToken& multi_token() const { return multi_token_; }
  const PackedMatrix& head() const { return head_; }
  const float* final_norm() const { return reinterpret_cast<const float*>(final_norm_.data()); }
  // Row `id` of the embedding as float32, padded_hidden values.
  void embed(size_t id, float* out) const;

 private:
  PackedMatrix pack_plain(Precision precision, size_t group, const Source& source, size_t rows, size_t cols,
                          const char* name);
  FeedForward pack_ffn(Precision precision, const Source& gate, const Source& up, const Source& down, size_t width);
  Precision body_precision(size_t layer) const;
  AlignedBuffer pack_norm(const Source& norm) const;
  Layer& layer(size_t index);
  void check_codes(const Source& source, size_t group) const;

  // Where a packed matrix goes and what it must be like. Precision fp32 stands for what is never quantised.
  struct Slot {
    PackedMatrix* to;
    size_t rows, cols, group;
    enum class Kind { body, head, embedding, router } kind;
  };
  void name_slots();
  void name_ffn(const std::string& prefix, FeedForward& ffn, size_t width);
  const Slot& slot(const std::string& name) const;

  const Config& config_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  std::vector<Layer> layers_;
  std::map<std::string, Slot> slots_;
  PackedMatrix head_, embedding_;
  AlignedBuffer final_norm_;
  MultiToken multi_token_;
};

}  // namespace ernie
