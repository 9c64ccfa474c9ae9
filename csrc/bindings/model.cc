#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "bindings/bindings.h"
#include "model/model.h"

namespace ernie {
namespace {

using Ids = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Values = nb::ndarray<nb::numpy, float, nb::ndim<2>>;

Precision precision_from(const std::string& name) {
  if (name == "fp32") return Precision::fp32;
  if (name == "bf16") return Precision::bf16;
  if (name == "int8") return Precision::int8;
  if (name == "int4") return Precision::int4;
  if (name == "nested8") return Precision::nested8;
  if (name == "nested6") return Precision::nested6;
  throw std::invalid_argument("unknown precision '" + name + "'");
}

KvPrecision kv_precision_from(const std::string& name) {
  if (name == "fp32") return KvPrecision::fp32;
  if (name == "bf16") return KvPrecision::bf16;
  if (name == "int8") return KvPrecision::int8;
  throw std::invalid_argument("unknown KV precision '" + name + "'");
}

Output output_from(const std::string& name) {
  if (name == "none") return Output::none;
  if (name == "logits") return Output::logits;
  if (name == "hidden") return Output::hidden;
  if (name == "select") return Output::select;
  throw std::invalid_argument("unknown output '" + name + "'");
}

int checked_threads(int threads) {
  if (threads < 1 || threads > 1024) throw std::invalid_argument("threads must be from 1 to 1024");
  return threads;
}

StepInput to_input(nb::handle item) {
  const auto step = nb::cast<nb::tuple>(item);
  if (step.size() != 5) throw std::invalid_argument("a step is (sequence, ids, rows, output, select)");
  StepInput input;
  input.sequence = nb::cast<int64_t>(step[0]);
  const auto ids = nb::cast<Ids>(step[1]);
  input.ids.assign(ids.data(), ids.data() + ids.size());
  input.rows = nb::cast<size_t>(step[2]);
  input.output = output_from(nb::cast<std::string>(step[3]));
  if (input.rows == 0) input.output = Output::none;
  if (!step[4].is_none()) input.select = nb::cast<const Select&>(step[4]);
  return input;
}

std::vector<StepInput> to_inputs(const nb::list& batch) {
  std::vector<StepInput> inputs;
  for (nb::handle item : batch) inputs.push_back(to_input(item));
  return inputs;
}

nb::object to_array(StepOutput& output, size_t rows, size_t width) {
  float* data = output.owned.get();
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<float*>(p); });
  output.owned.release();
  return nb::cast(Values(data, {rows, width}, owner));
}

nb::list to_drawn(const std::vector<Drawn>& drawn) {
  nb::list list;
  for (const Drawn& d : drawn) list.append(nb::make_tuple(d.token, d.logprob, nb::cast(d.top)));
  return list;
}

nb::list to_results(const Model& model, std::vector<StepOutput>& outputs) {
  nb::list results;
  for (StepOutput& output : outputs) {
    switch (output.output) {
      case Output::none:
        results.append(nb::none());
        break;
      case Output::logits:
        results.append(to_array(output, output.rows, model.config().vocab));
        break;
      case Output::hidden:
        results.append(to_array(output, output.rows, model.config().hidden));
        break;
      case Output::select:
        results.append(to_drawn(output.drawn));
        break;
    }
  }
  return results;
}

nb::list forward(Model& model, const nb::list& batch) {
  std::vector<StepInput> inputs = to_inputs(batch);
  std::vector<StepOutput> outputs;
  {
    nb::gil_scoped_release release;
    outputs = model.forward(std::move(inputs));
  }
  return to_results(model, outputs);
}

// A step that is to draw and has no select gets it from `result`.
void start(Model& model, const nb::list& batch) {
  std::vector<StepInput> inputs = to_inputs(batch);
  for (size_t i = 0; i < inputs.size(); ++i)
    inputs[i].late = inputs[i].output == Output::select && nb::cast<nb::tuple>(batch[i])[4].is_none();
  nb::gil_scoped_release release;
  model.start(std::move(inputs));
}

nb::list result(Model& model, const nb::list& selects) {
  std::vector<std::pair<size_t, Select>> late;
  for (nb::handle item : selects) {
    const auto pair = nb::cast<nb::tuple>(item);
    late.emplace_back(nb::cast<size_t>(pair[0]), nb::cast<const Select&>(pair[1]));
  }
  std::vector<StepOutput> outputs;
  {
    nb::gil_scoped_release release;
    outputs = model.result(std::move(late));
  }
  return to_results(model, outputs);
}

nb::list draft(Model& model, const std::vector<std::pair<int64_t, int32_t>>& batch, size_t depth) {
  std::vector<DraftInput> inputs;
  for (const auto& [sequence, token] : batch) inputs.push_back({sequence, token});
  std::vector<std::vector<int32_t>> guesses;
  {
    nb::gil_scoped_release release;
    guesses = model.draft(inputs, depth);
  }
  nb::list results;
  for (const auto& ids : guesses) results.append(nb::tuple(nb::cast(ids)));
  return results;
}

using Panels = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

const char* precision_name(Precision precision) {
  constexpr const char* names[] = {"fp32", "bf16", "int8", "int4", "nested8", "nested6"};
  return names[static_cast<int>(precision)];
}

// Steps, and for every part that ran: (name, calls, seconds, bytes).
nb::tuple profile(Model& model, bool on) {
  const Profile made = model.profile(on);
  nb::list parts;
  for (size_t i = 0; i < kPartNames.size(); ++i) {
    const Profile::Entry& entry = made.entries()[i];
    if (entry.calls > 0) parts.append(nb::make_tuple(kPartNames[i], entry.calls, entry.seconds, entry.bytes));
  }
  return nb::make_tuple(made.steps(), parts);
}

nb::tuple packed(Model& model, const std::string& name) {
  const PackedMatrix& matrix = model.packed_weights().matrix(name);
  const nb::ndarray<nb::numpy, const uint8_t, nb::ndim<1>> panels(matrix.view.data, {matrix.bytes()}, nb::find(model));
  return nb::make_tuple(precision_name(matrix.view.precision), matrix.view.scale_group, matrix.exact, panels);
}

// As `packed`, of a matrix that the model gives away.
nb::tuple take_packed(Model& model, const std::string& name) {
  auto taken = std::make_unique<PackedMatrix>(model.weights().take(name));
  PackedMatrix* matrix = taken.get();
  nb::capsule owner(matrix, [](void* p) noexcept { delete static_cast<PackedMatrix*>(p); });
  taken.release();
  const nb::ndarray<nb::numpy, const uint8_t, nb::ndim<1>> panels(matrix->view.data, {matrix->bytes()}, owner);
  return nb::make_tuple(precision_name(matrix->view.precision), matrix->view.scale_group, matrix->exact, panels);
}

void set_packed(Model& model, const std::string& name, const std::string& precision, size_t group,
                const std::vector<int32_t>& exact, const Panels& panels) {
  model.weights().set_packed(name, precision_from(precision), group, exact, panels.data(), panels.size());
}

void bind_config(nb::module_& m) {
  nb::class_<Config>(m, "Config", "Sizes of a model, and how it runs; see csrc/model/config.h.")
      .def(nb::init<>())
      .def_rw("vocab", &Config::vocab)
      .def_rw("hidden", &Config::hidden)
      .def_rw("layers", &Config::layers)
      .def_rw("heads", &Config::heads)
      .def_rw("kv_heads", &Config::kv_heads)
      .def_rw("head_dim", &Config::head_dim)
      .def_rw("intermediate", &Config::intermediate)
      .def_rw("eps", &Config::eps)
      .def_rw("theta", &Config::theta)
      .def_rw("tied", &Config::tied)
      .def_rw("multi_token", &Config::multi_token)
      .def_rw("experts", &Config::experts)
      .def_rw("experts_per_token", &Config::experts_per_token)
      .def_rw("expert_intermediate", &Config::expert_intermediate)
      .def_rw("shared_experts", &Config::shared_experts)
      .def_rw("norm_min", &Config::norm_min)
      .def_rw("moe_layers", &Config::moe_layers)
      .def_rw("group", &Config::group)
      .def_rw("down_group", &Config::down_group)
      .def_rw("head_group", &Config::head_group)
      .def_rw("whole_head", &Config::whole_head)
      .def_rw("max_context", &Config::max_context)
      .def_rw("max_step_tokens", &Config::max_step_tokens)
      .def_rw("max_sequences", &Config::max_sequences)
      .def_rw("max_pages", &Config::max_pages)
      .def_prop_ro("page_bytes", &Config::page_bytes)
      .def("scratch_bytes",
           [](Config c, int threads) {
             c.max_pages = 1;  // chosen after this is known, and of no influence
             c.check();
             return Scratch(c, checked_threads(threads)).bytes();
           },
           nb::arg("threads"))
      .def("set_precision", [](Config& c, const std::string& weights, const std::string& kv) {
        c.precision = precision_from(weights);
        if (is_nested(c.precision)) throw std::invalid_argument("precision '" + weights + "' is for single matrices");
        c.kv_precision = kv_precision_from(kv);
      });
}

}  // namespace

void bind_model(nb::module_& m) {
  bind_config(m);
  using Release = nb::call_guard<nb::gil_scoped_release>;
  using T = const BoundTensor&;
  nb::class_<Model>(m, "Model", "Packed weights, KV cache and the step. Weights come from one thread; after `finish`, calls from any.")
      .def("__init__",
           [](Model* self, const Config& config, const std::string& isa, int threads) {
             new (self) Model(config, isa_from_name(isa), checked_threads(threads));
           },
           nb::arg("config"), nb::arg("isa"), nb::arg("threads"))
      .def("set_embedding", [](Model& s, T table) { s.weights().set_embedding(table.source); }, Release())
      .def("set_head", [](Model& s, T head) { s.weights().set_head(head.source); }, Release())
      .def("set_final_norm", [](Model& s, T norm) { s.weights().set_final_norm(norm.source); }, Release())
      .def("set_norms", [](Model& s, size_t layer, T in, T post) { s.weights().set_norms(layer, in.source, post.source); },
           Release())
      .def("set_attention",
           [](Model& s, size_t layer, T q, T k, T v, T o) {
             s.weights().set_attention(layer, q.source, k.source, v.source, o.source);
           },
           Release())
      .def("set_ffn",
           [](Model& s, size_t layer, T gate, T up, T down) {
             s.weights().set_ffn(layer, gate.source, up.source, down.source);
           },
           Release())
      .def("set_router",
           [](Model& s, size_t layer, T weight, T bias) { s.weights().set_router(layer, weight.source, bias.source); },
           Release())
      .def("set_expert",
           [](Model& s, size_t layer, size_t expert, T gate, T up, T down) {
             s.weights().set_expert(layer, expert, gate.source, up.source, down.source);
           },
           Release())
      .def("set_multi_token", [](Model& s, T projection) { s.weights().set_multi_token(projection.source); }, Release())
      .def("set_multi_token_norms",
           [](Model& s, T embedding, T hidden) {
             s.weights().set_multi_token_norms(embedding.source, hidden.source);
           },
           Release())
      .def("matrix_names", [](Model& s) { return s.packed_weights().matrix_names(); })
      .def("packed", &packed, nb::rv_policy::reference_internal, nb::arg("name"))
      .def("take_packed", &take_packed, nb::arg("name"))
      .def("set_packed", &set_packed, nb::keep_alive<1, 6>(), nb::arg("name"), nb::arg("precision"), nb::arg("group"),
           nb::arg("exact"), nb::arg("panels"))
      .def("finish", &Model::finish, Release())
      .def("open", &Model::open, Release())
      .def("free", &Model::free, Release())
      .def("fork", &Model::fork, Release())
      .def("truncate", &Model::truncate, Release())
      .def("park", &Model::park, Release())
      .def("claim", &Model::claim, Release())
      .def("length", &Model::length, Release())
      .def("forward", &forward, nb::arg("batch"))
      .def("start", &start, nb::arg("batch"))
      .def("result", &result, nb::arg("selects"))
      .def("abandon", &Model::abandon, Release())
      .def("draft", &draft, nb::arg("batch"), nb::arg("depth"))
      .def("profile", &profile, nb::arg("on"))
      .def_prop_ro("free_tokens", &Model::free_tokens, Release())
      .def_prop_ro("used_tokens", &Model::used_tokens, Release())
      .def_prop_ro("scratch_bytes", &Model::scratch_bytes)
      .def_prop_ro("weight_bytes", &Model::weight_bytes);
}

}  // namespace ernie
