#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "base/bandwidth.h"
#include "base/cpu.h"
#include "base/peak.h"
#include "bindings/bindings.h"

namespace ernie {

void bind_cpu(nb::module_& m) {
  m.def(
      "supported_isas",
      [] {
        std::vector<std::string> names;
        for (Isa isa : supported_isas()) names.emplace_back(isa_name(isa));
        return names;
      },
      "Instruction-set levels that this build has and this processor runs, lowest first.");
  m.def("read_bandwidth", &read_bandwidth, nb::arg("bytes"), nb::arg("threads"), nb::arg("passes"),
        nb::call_guard<nb::gil_scoped_release>(),
        "Bytes a second that threads together read from a buffer of `bytes`; the best of some passes over it.");
  m.def("dot_product_peak", &dot_product_peak, nb::arg("threads"), nb::arg("passes"), nb::call_guard<nb::gil_scoped_release>(),
        "Operations a second of AVX-512 VNNI's int8 dot products out of registers; 0 where the processor has none.");
}

}  // namespace ernie
