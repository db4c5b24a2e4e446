// A block goes over one row of any length and alignment: 16 bytes a thread where it can.
#pragma once

#include "device.cuh"

namespace roots {

__device__ __forceinline__ int misalignment(const void* address) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(address) % 16);
}

// on_pack(pack, column) for the 16-byte packs of a row, on_single(value, column) for the elements
// before the first 16-byte boundary and after the last. Several packs are on their way at once;
// what on_pack writes at its own columns, to the row itself even, disturbs nothing.
template <class T, class OnPack, class OnSingle>
__device__ __forceinline__ void for_row(const T* row, int64_t width, const OnPack& on_pack,
                                        const OnSingle& on_single) {
  constexpr int kSize = kPackSize<T>, kInFlight = 4;
  const int64_t to_boundary = (16 - misalignment(row)) % 16 / static_cast<int>(sizeof(T));
  const int64_t head = to_boundary < width ? to_boundary : width;
  const int64_t packs = (width - head) / kSize;
  const int64_t step = blockDim.x;
  for (int64_t start = threadIdx.x; start < packs; start += kInFlight * step) {
    Pack<T, kSize> values[kInFlight];
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      const int64_t i = start + k * step;
      if (i < packs) values[k] = load_pack<kSize>(row + head + i * kSize);
    }
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      const int64_t i = start + k * step;
      if (i < packs) on_pack(values[k], head + i * kSize);
    }
  }
  // Fewer than a pack on either side, and a block has at least 32 threads.
  const int64_t tail = head + packs * kSize;
  if (threadIdx.x < head) on_single(row[threadIdx.x], static_cast<int64_t>(threadIdx.x));
  if (tail + threadIdx.x < width) on_single(row[tail + threadIdx.x], tail + threadIdx.x);
}

// e^x where x <= 0 counts: the fast form errs by 2 units in the last place and 2^-22 |x|, which is
// lost where 16 bits are stored.
template <class T>
__device__ __forceinline__ float exp_for(float x) {
  if constexpr (sizeof(T) == 4) {
    return expf(x);
  } else {
    return __expf(x);
  }
}

// The largest value of some numbers and the sum of their exponentials relative to it.
struct Softmax {
  float maximum, sum;
};

// Nothing but -infinity seen so far: its exponentials are 0, not exp(-infinity + infinity).
__device__ __forceinline__ float shift_of(float maximum) {
  return maximum == -INFINITY ? 0.0f : maximum;
}

__device__ __forceinline__ Softmax merge(Softmax a, Softmax b) {
  const float maximum = fmaxf(a.maximum, b.maximum), shift = shift_of(maximum);
  return {maximum, a.sum * expf(a.maximum - shift) + b.sum * expf(b.maximum - shift)};
}

__device__ __forceinline__ Softmax warp_merge(Softmax value) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    value = merge(value, {__shfl_xor_sync(kFullMask, value.maximum, offset),
                          __shfl_xor_sync(kFullMask, value.sum, offset)});
  }
  return value;
}

// Over the block, in every thread; `scratch` has 64 floats, free again afterwards.
__device__ __forceinline__ Softmax block_merge(Softmax value, float* scratch) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int num_warps = blockDim.x / kWarpSize;
  value = warp_merge(value);
  if (lane == 0) {
    scratch[warp] = value.maximum;
    scratch[kWarpSize + warp] = value.sum;
  }
  __syncthreads();
  value = {lane < num_warps ? scratch[lane] : -INFINITY,
           lane < num_warps ? scratch[kWarpSize + lane] : 0.0f};
  value = warp_merge(value);
  __syncthreads();
  return value;
}

}  // namespace roots
