#define ERNIE_VARIANT amx
#include "base/simd/amx.h"
#include "base/simd/avx512.h"
#include "kernels/variants/instantiate.h"
