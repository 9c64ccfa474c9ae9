#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>
#include <stdexcept>

#include "bindings/bindings.h"

namespace ernie {
namespace {

Dtype dtype_of(const nb::ndarray<nb::ro, nb::device::cpu>& array, const std::string& name) {
  const nb::dlpack::dtype stored = array.dtype();
  const auto is = [&](nb::dlpack::dtype_code code, int bits) {
    return stored.code == static_cast<uint8_t>(code) && stored.bits == bits && stored.lanes == 1;
  };
  if (name == "float32" && is(nb::dlpack::dtype_code::Float, 32)) return Dtype::fp32;
  if (name == "float16" && is(nb::dlpack::dtype_code::Float, 16)) return Dtype::fp16;
  if (name == "bfloat16" && is(nb::dlpack::dtype_code::UInt, 16)) return Dtype::bf16;
  throw std::invalid_argument("a tensor's array does not have the dtype '" + name + "' that it claims");
}

BoundTensor make_tensor(nb::ndarray<nb::ro, nb::device::cpu> array, const std::string& dtype) {
  if (array.ndim() < 1 || array.ndim() > 2) throw std::invalid_argument("a tensor must have one or two dimensions");
  BoundTensor tensor;
  tensor.source.dtype = dtype_of(array, dtype);
  tensor.source.data = array.data();
  const bool matrix = array.ndim() == 2;
  tensor.source.rows = matrix ? array.shape(0) : 1;
  tensor.source.cols = array.shape(matrix ? 1 : 0);
  tensor.source.row_stride = matrix ? array.stride(0) : 0;
  tensor.source.col_stride = array.stride(matrix ? 1 : 0);
  tensor.kept.push_back(nb::cast(array));
  return tensor;
}

template <typename T>
using Table = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Columns = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(std::string("a quantised matrix: ") + what);
}

void check_codes(int bits, const Table<int8_t>& codes) {
  const int most = (1 << (bits - 1)) - 1, least = bits == 8 ? -most : -most - 1;
  bool ok = true;
  for (size_t i = 0; i < codes.size(); ++i) ok &= codes.data()[i] >= least && codes.data()[i] <= most;
  require(ok, "codes must be from -127 to 127 in 8 bits, -32 to 31 in 6, -8 to 7 in 4");
}

void check_factors(const Table<uint8_t>& subs) {
  bool ok = true;
  for (size_t i = 0; i < subs.size(); ++i) ok &= subs.data()[i] <= 15;
  require(ok, "factors must be from 0 to 15");
}

BoundTensor make_quantised(int bits, size_t group, const Table<int8_t>& codes, const Table<uint16_t>& scales,
                           const std::optional<Table<uint8_t>>& subs, const Columns& exact,
                           const Table<uint16_t>& exact_weights) {
  const size_t rows = codes.shape(0), cols = codes.shape(1);
  require(bits == 8 || bits == 6 || bits == 4, "bits must be 8, 6 or 4");
  require((bits == 4) == subs.has_value(), "4 bits have factors, others have none");
  check_codes(bits, codes);
  require(group > 0 && group % 16 == 0 && group <= kMaxGroup, "the group must be a multiple of 16 up to 256");
  require(has_shape(scales, rows, div_up(cols, group)), "scales must be [rows, groups]");
  const char* problem = exact_columns_problem(exact.data(), exact.size(), cols);
  require(problem == nullptr, problem);
  require(has_shape(exact_weights, rows, exact.size()), "exact weights must be [rows, exact columns]");
  BoundTensor tensor;
  tensor.kept = {nb::cast(codes), nb::cast(scales), nb::cast(exact), nb::cast(exact_weights)};
  if (subs) {
    require(has_shape(*subs, rows, div_up(cols, kSubColumns)), "factors must be [rows, a sixteenth of the columns]");
    check_factors(*subs);
    tensor.kept.push_back(nb::cast(*subs));
  }
  tensor.codes = std::make_unique<Codes>(Codes{codes.data(), scales.data(), subs ? subs->data() : nullptr, exact.data(),
                                               exact_weights.data(), exact.size(), bits, group});
  tensor.source = {.rows = rows, .cols = cols, .codes = tensor.codes.get()};
  return tensor;
}

}  // namespace

void bind_tensor(nb::module_& m) {
  nb::class_<BoundTensor>(m, "Tensor", "A checkpoint tensor: an array, and the dtype that its bits have.")
      .def("__init__", [](BoundTensor* self, nb::ndarray<nb::ro, nb::device::cpu> array,
                          const std::string& dtype) { new (self) BoundTensor(make_tensor(std::move(array), dtype)); },
           nb::arg("array"), nb::arg("dtype"))
      .def_static("quantised", &make_quantised, nb::arg("bits"), nb::arg("group"), nb::arg("codes"), nb::arg("scales"),
                  nb::arg("subs").none(), nb::arg("exact"), nb::arg("exact_weights"),
                  "A matrix whose codes were chosen before; see Codes in csrc/kernels/linear/pack.h.");
}

}  // namespace ernie
