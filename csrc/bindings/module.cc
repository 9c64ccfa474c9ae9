#include "bindings/bindings.h"

#include "model/kv_cache.h"

NB_MODULE(_native, m) {
  m.doc() = "The native core of ernie_accel; use ernie_accel.backends.native.";
  nb::exception<ernie::CapacityError>(m, "CapacityError", PyExc_RuntimeError);
  ernie::bind_cpu(m);
  ernie::bind_tensor(m);
  ernie::bind_select(m);
  ernie::bind_model(m);
  ernie::bind_rounding(m);
}
