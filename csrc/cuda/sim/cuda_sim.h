// Runs CUDA kernels on the host: included by ../device.cuh instead of <cuda_runtime.h>. What it
// shows and what it does not: README.md.
//
// NVIDIA's type headers are used (dim3, float4, __half, __nv_bfloat16 with their host conversions),
// none of its libraries.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#undef __forceinline__
#define __forceinline__ inline __attribute__((always_inline))
#undef __noinline__
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__
#undef __shared__
#define __shared__ \
  _Pragma("GCC error \"write ROOTS_STATIC_SHARED(T, name) or ROOTS_DYNAMIC_SHARED(T, name)\"")

#include "arithmetic.h"
#include "atomics.h"
#include "block.h"
#include "instructions.h"
#include "memory.h"
#include "runtime.h"
#include "warp.h"
