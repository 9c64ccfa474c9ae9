// Every operation that has one implementation for each instruction set, as one table of functions.
//
// The meaning of an operation is in its folder's header; its code, once, in its folder's generic.h over the sixteen
// lanes of base/simd; variants/ instantiates it. kernels.inc lists the variants for selection, tests and benchmarks.
#pragma once

#include "base/cpu.h"
#include "kernels/attention/attention.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/linear/linear.h"
#include "kernels/linear/quantise.h"
#include "kernels/rounding/rounding.h"
#include "kernels/select/passes.h"

namespace ernie {

struct Kernels {
  Isa isa;
  LinearFn linear;
  BoundFn bound;
  PrepareFn prepare;
  QuantiseFn quantise;
  RmsNormFn rms_norm;
  RopeFn rope;
  SwigluFn swiglu;
  AddScaledFn add_scaled;
  AttendFn attend;
  JoinFn join;
  FinishFn finish;
  StoreKvFn store_key;
  StoreKvFn store_value;
  StoreQueryFn store_query;
  RoundingKernels rounding;
  SelectKernels select;
};

// Throws std::invalid_argument if the level is not compiled in or the host cannot run it.
const Kernels& kernels_for(Isa isa);

}  // namespace ernie
