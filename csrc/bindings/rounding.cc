#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>

#include "bindings/bindings.h"
#include "kernels/rounding/matrix.h"

namespace ernie {
namespace {

template <typename T>
using Table = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Line = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(what);
}

// Calibration's own view of the machine: which kernels, how many threads.
struct Calculator {
  const Kernels& kernels;
  std::shared_ptr<ThreadPool> pool;
  std::unique_ptr<Workspace> memory = std::make_unique<Workspace>();
  std::unique_ptr<std::mutex> one_call_at_a_time = std::make_unique<std::mutex>();

  Calculator(const std::string& isa, int threads)
      : kernels(kernels_for(isa_from_name(isa))), pool(ThreadPool::shared(threads)) {}

  void multiply(const Table<const float>& x, const Table<const float>& w, const Table<float>& out) const {
    require(x.shape(1) == w.shape(1) && has_shape(out, x.shape(0), w.shape(0)), "multiply: shapes do not fit together");
    const nb::gil_scoped_release free;
    const std::lock_guard<std::mutex> lock(*one_call_at_a_time);
    multiply_matrix(kernels, x.data(), x.shape(0), w.data(), w.shape(0), x.shape(1), out.data(), *memory, *pool);
  }

  void multiply_codes(const Table<const float>& x, const BoundTensor& w, size_t group, const Table<float>& out) const {
    const Source& source = w.source;
    require(source.codes != nullptr, "multiply_codes: the matrix has no codes");
    require(x.shape(1) == source.cols && has_shape(out, x.shape(0), source.rows), "multiply_codes: shapes do not fit");
    const nb::gil_scoped_release free;
    const std::lock_guard<std::mutex> lock(*one_call_at_a_time);
    ernie::multiply_codes(kernels, x.data(), x.shape(0), source, group, out.data(), *memory, *pool);
  }

  void cross(const Table<const float>& x, const Table<const float>& y, const Table<float>& out, bool lower) const {
    require(x.shape(0) == y.shape(0) && has_shape(out, x.shape(1), y.shape(1)), "cross: shapes do not fit together");
    require(!lower || x.shape(1) == y.shape(1), "cross: lower needs a square result");
    const nb::gil_scoped_release free;
    const std::lock_guard<std::mutex> lock(*one_call_at_a_time);
    cross_matrix(kernels, x.data(), x.shape(1), y.data(), y.shape(1), x.shape(0), lower, out.data(), *memory, *pool);
  }

  bool factor(const Table<const float>& gram, const Table<float>& reach) const {
    const size_t n = gram.shape(0);
    require(has_shape(gram, n, n) && has_shape(reach, n, n), "factor: both must be square and of one size");
    const nb::gil_scoped_release free;
    const std::lock_guard<std::mutex> lock(*one_call_at_a_time);
    return factor_matrix(kernels.rounding, gram.data(), n, reach.data(), *memory, *pool);
  }

  void solve(const Table<const float>& reach, const Table<float>& values) const {
    const size_t n = reach.shape(0);
    require(has_shape(reach, n, n) && values.shape(1) == n, "solve: shapes do not fit together");
    const nb::gil_scoped_release free;
    const std::lock_guard<std::mutex> lock(*one_call_at_a_time);
    solve_matrix(kernels.rounding, reach.data(), n, values.data(), values.shape(0), *memory, *pool);
  }

  void round(const Table<const float>& weights, const std::optional<Table<const float>>& reach,
             const Line<float>& weigh, const Line<uint8_t>& exact, int bits, size_t group, const std::vector<float>& clips,
             const Table<int8_t>& codes, const Table<uint16_t>& scales, const std::optional<Table<uint8_t>>& subs,
             const Table<uint16_t>& exact_weights) const {
    const size_t rows = weights.shape(0), cols = weights.shape(1);
    require(bits == 4 || bits == 6 || bits == 8, "round: bits must be 4, 6 or 8");
    require(group > 0 && group % kSubColumns == 0, "round: the group must be a multiple of 16");
    require(!reach || has_shape(*reach, cols, cols), "round: reach must be [cols, cols]");
    require(weigh.size() == cols && exact.size() == cols, "round: one weight and one flag for each column");
    require(has_shape(codes, rows, cols) && has_shape(scales, rows, div_up(cols, group)), "round: codes or scales");
    require(subs.has_value() == (bits == 4), "round: factors belong to 4 bits");
    require(!subs || has_shape(*subs, rows, div_up(cols, kSubColumns)), "round: factors");
    size_t kept = 0;
    for (size_t i = 0; i < cols; ++i) require(exact(i) <= 1, "round: flags are 0 or 1"), kept += exact(i);
    require(has_shape(exact_weights, rows, kept), "round: exact weights");
    Rounding how{.cols = cols, .group = group, .reach = reach ? reach->data() : nullptr, .weigh = weigh.data(),
                 .exact = exact.data(), .clips = clips.data(), .clip_count = clips.size()};
    how.high = bits == 8 ? 127.0f : bits == 6 ? 31.0f : 7.0f;
    how.low = bits == 8 ? -127.0f : bits == 6 ? -32.0f : -8.0f;
    how.factors = bits == 4;
    const nb::gil_scoped_release free;
    const std::lock_guard<std::mutex> lock(*one_call_at_a_time);
    round_matrix(kernels.rounding, how, weights.data(), rows,
                 {codes.data(), scales.data(), subs ? subs->data() : nullptr, exact_weights.data()}, *pool);
  }
};

}  // namespace

void bind_rounding(nb::module_& m) {
  nb::class_<Calculator>(m, "Calculator", "Arithmetic of calibration; see csrc/kernels/rounding/.")
      .def(nb::init<const std::string&, int>(), nb::arg("isa"), nb::arg("threads"))
      .def("multiply", &Calculator::multiply, nb::arg("x"), nb::arg("w"), nb::arg("out"))
      .def("multiply_codes", &Calculator::multiply_codes, nb::arg("x"), nb::arg("w"), nb::arg("group"), nb::arg("out"))
      .def("cross", &Calculator::cross, nb::arg("x"), nb::arg("y"), nb::arg("out"), nb::arg("lower") = false)
      .def("factor", &Calculator::factor, nb::arg("gram"), nb::arg("reach"))
      .def("solve", &Calculator::solve, nb::arg("reach"), nb::arg("values"))
      .def("round", &Calculator::round, nb::arg("weights"), nb::arg("reach").none(), nb::arg("weigh"), nb::arg("exact"),
           nb::arg("bits"), nb::arg("group"), nb::arg("clips"), nb::arg("codes"), nb::arg("scales"),
           nb::arg("subs").none(), nb::arg("exact_weights"));
}

}  // namespace ernie
