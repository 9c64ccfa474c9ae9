#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "bindings/bindings.h"
#include "kernels/kernels.h"
#include "kernels/select/select.h"

namespace ernie {
namespace {

template <typename T>
using Array = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <typename T>
std::vector<T> to_vector(const Array<T>& array) {
  return std::vector<T>(array.data(), array.data() + array.size());
}

void make_select(Select* self, double temperature, size_t top_k, double top_p, double min_p, float repetition_penalty,
                 float presence_penalty, float frequency_penalty, size_t vocab_limit, const Array<int32_t>& seen,
                 const Array<int32_t>& counts, const Array<uint32_t>& mask, int logprobs, uint64_t seed) {
  new (self) Select{.temperature = temperature,
                    .top_k = top_k,
                    .top_p = top_p,
                    .min_p = min_p,
                    .repetition_penalty = repetition_penalty,
                    .presence_penalty = presence_penalty,
                    .frequency_penalty = frequency_penalty,
                    .vocab_limit = vocab_limit,
                    .seen = to_vector(seen),
                    .counts = to_vector(counts),
                    .mask = to_vector(mask),
                    .logprobs = logprobs,
                    .seed = seed};
}

nb::tuple select_from(const Select& select, const Array<float>& logits, uint64_t position, const std::string& isa) {
  std::vector<float> row = to_vector(logits);
  check_select(select, row.size());
  SelectScratch scratch;
  const Drawn drawn = select_row(kernels_for(isa_from_name(isa)).select, select, row.data(), row.size(), position, scratch);
  return nb::make_tuple(drawn.token, drawn.logprob, nb::cast(drawn.top));
}

}  // namespace

void bind_select(nb::module_& m) {
  nb::class_<Select>(m, "Select", "How to draw a token; fields as in ernie_accel.backends.base.Select.")
      .def("__init__", &make_select, nb::kw_only(), nb::arg("temperature"), nb::arg("top_k"), nb::arg("top_p"),
           nb::arg("min_p"), nb::arg("repetition_penalty"), nb::arg("presence_penalty"), nb::arg("frequency_penalty"),
           nb::arg("vocab_limit"), nb::arg("seen"), nb::arg("counts"), nb::arg("mask"), nb::arg("logprobs"),
           nb::arg("seed"));
  m.def("select_from", &select_from, nb::arg("select"), nb::arg("logits"), nb::arg("position"), nb::arg("isa"),
        "Draws from one row of logits as a step does: token, log-probability, alternatives.");
  m.def("uniform", &uniform, nb::arg("seed"), nb::arg("position"),
        "Number in [0, 1) that a draw with this seed at this position uses.");
}

}  // namespace ernie
