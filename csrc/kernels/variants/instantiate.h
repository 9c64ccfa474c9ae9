// Included once by each variant, after ERNIE_VARIANT and its simd header.
#include "kernels/attention/generic.h"
#include "kernels/elementwise/generic.h"
#include "kernels/kernels.h"
#include "kernels/linear/generic.h"
#include "kernels/rounding/generic.h"
#include "kernels/select/generic.h"

namespace ernie::ERNIE_VARIANT {

extern const Kernels kernels;
const Kernels kernels = {
    .isa = Isa::ERNIE_VARIANT,
    .linear = linear,
    .bound = bound,
    .prepare = prepare,
    .quantise = quantise,
    .rms_norm = rms_norm,
    .rope = rope,
    .swiglu = swiglu,
    .add_scaled = add_scaled,
    .attend = attend,
    .join = join,
    .finish = finish,
    .store_key = store_key,
    .store_value = store_value,
    .store_query = store_query,
    .rounding = kRoundingKernels,
    .select = kSelectKernels,
};

}  // namespace ernie::ERNIE_VARIANT
