// One file for each bound class; bounds are checked here or in the function that is bound.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <memory>
#include <vector>

#include "kernels/linear/pack.h"

namespace nb = nanobind;

namespace ernie {

void bind_cpu(nb::module_& m);
void bind_tensor(nb::module_& m);
void bind_select(nb::module_& m);
void bind_model(nb::module_& m);
void bind_rounding(nb::module_& m);

template <typename Array>
bool has_shape(const Array& table, size_t rows, size_t cols) {
  return table.shape(0) == rows && table.shape(1) == cols;
}

// A view of a NumPy array of one or two dimensions, or of the arrays of a quantised matrix; keeps them alive.
struct BoundTensor {
  std::vector<nb::object> kept;
  std::unique_ptr<Codes> codes;
  Source source;
};

}  // namespace ernie
