// What device code shares: conversions, 16-byte access, reductions, launches.
//
// Kernels are compiled by nvcc, and as C++ for the host by the simulator (csrc/cuda/sim).
// Therefore:
// - launches through roots::launch;
// - shared memory through ROOTS_STATIC_SHARED(float[32], name) and ROOTS_DYNAMIC_SHARED(T, name),
//   so that it is poisoned, counted and guarded there;
// - wide access through load_pack and store_pack, so that its alignment is checked there;
// - inline PTX only in instructions.cuh, where each instruction has an emulation.
#pragma once

#if defined(ROOTS_BACKEND_SIMULATOR)
#include "sim/cuda_sim.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
// T: an array type, such as float[2][32].
#define ROOTS_STATIC_SHARED(T, name) \
  using roots_type_of_##name = T;    \
  __shared__ roots_type_of_##name name
// T: the type of the elements, whose number the launch decides.
#define ROOTS_DYNAMIC_SHARED(T, name)                                   \
  extern __shared__ __align__(16) unsigned char roots_dynamic_shared[]; \
  T* name = reinterpret_cast<T*>(roots_dynamic_shared)
#endif

#include <cstdint>

#include "../common.h"

namespace roots {

constexpr int kWarpSize = 32;
constexpr unsigned kFullMask = 0xffffffffu;

template <class T>
__device__ __forceinline__ float to_float(T value);
template <>
__device__ __forceinline__ float to_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ float to_float<__half>(__half value) {
  return __half2float(value);
}
template <>
__device__ __forceinline__ float to_float<__nv_bfloat16>(__nv_bfloat16 value) {
  return __bfloat162float(value);
}

template <class T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

// kSize elements of T that are loaded and stored at once; kSize * sizeof(T) is 2 to 16 bytes.
template <class T, int kSize>
struct alignas(sizeof(T) * kSize) Pack {
  T values[kSize];
};

// Elements of T in 16 bytes, the widest access there is.
template <class T>
constexpr int kPackSize = 16 / sizeof(T);

template <int kSize, class T>
__device__ __forceinline__ Pack<T, kSize> load_pack(const T* source) {
#if defined(ROOTS_BACKEND_SIMULATOR)
  simulator::check_alignment(source, sizeof(Pack<T, kSize>), "load_pack");
#endif
  return *reinterpret_cast<const Pack<T, kSize>*>(source);
}

template <class T, int kSize>
__device__ __forceinline__ void store_pack(T* target, const Pack<T, kSize>& pack) {
#if defined(ROOTS_BACKEND_SIMULATOR)
  simulator::check_alignment(target, sizeof(Pack<T, kSize>), "store_pack");
#endif
  *reinterpret_cast<Pack<T, kSize>*>(target) = pack;
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kFullMask, value, offset);
  }
  return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kFullMask, value, offset));
  }
  return value;
}

// Sum over the block, in every thread. blockDim.x is a multiple of 32; `scratch` has 32 floats of
// shared memory, free again when the function returns.
__device__ __forceinline__ float block_sum(float value, float* scratch) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int num_warps = blockDim.x / kWarpSize;
  value = warp_sum(value);
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  value = warp_sum(lane < num_warps ? scratch[lane] : 0.0f);
  __syncthreads();
  return value;
}

// Maximum over the block, in every thread; like block_sum.
__device__ __forceinline__ float block_max(float value, float* scratch) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int num_warps = blockDim.x / kWarpSize;
  value = warp_max(value);
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  value = warp_max(lane < num_warps ? scratch[lane] : -INFINITY);
  __syncthreads();
  return value;
}

// Launch kernel(arguments...); the cudaError_t of the launch.
template <class... Expected, class... Actual>
inline Status launch(void (*kernel)(Expected...), dim3 grid, dim3 block, size_t shared_bytes,
                     Stream stream, const Actual&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  return static_cast<Status>(
      cudaLaunchKernelEx(&config, kernel, static_cast<Expected>(arguments)...));
}

template <class T>
struct Tag {
  using type = T;
};

// with_dtype(dtype, [&](auto tag) { using T = typename decltype(tag)::type; return launch(...); })
template <class F>
inline Status with_dtype(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(Tag<float>{});
    case DType::kFloat16:
      return f(Tag<__half>{});
    case DType::kBFloat16:
      return f(Tag<__nv_bfloat16>{});
  }
  return static_cast<Status>(cudaErrorInvalidValue);
}

inline bool is_aligned(const void* pointer, size_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

inline int64_t ceil_div(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

}  // namespace roots

#include "instructions.cuh"
