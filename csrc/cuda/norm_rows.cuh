// How the blocks of layer_norm and rms_norm share rows, and sums over a row.
//
// `blockDim.x` threads, whole warps, go over one row together; the blockDim.y rows of a block go
// side by side. A row of up to kRegisterPacks packs (16 bytes) a thread stays in registers between
// its passes; longer rows, and rows that are not made of aligned packs, are read again.
#pragma once

#include "../ops/norm.h"
#include "device.cuh"

namespace roots {
namespace {

constexpr int kNormThreads = 512;
constexpr int kNormWarps = kNormThreads / kWarpSize;
constexpr int kRegisterPacks = 4;

// Elements k * blockDim.x + threadIdx.x of a row cut in units of kSize: the first of unit k.
template <int kSize>
__device__ __forceinline__ int64_t unit_start(int64_t k) {
  return (k * blockDim.x + threadIdx.x) * kSize;
}

// Sums over the threads of a row. All threads of the block call it equally often: it has a barrier
// where a row takes several warps. Two turns of scratch make one barrier enough.
class RowReducer {
 public:
  // scratch: 4 * kNormWarps floats of shared memory.
  __device__ __forceinline__ explicit RowReducer(float* scratch) : scratch_(scratch) {}

  // Makes a and b their sums, in every thread of the row.
  __device__ __forceinline__ void sum(float& a, float& b) {
    const int lane = threadIdx.x % kWarpSize, warps = blockDim.x / kWarpSize;
    a = warp_sum(a);
    b = warp_sum(b);
    if (warps == 1) return;
    float* turn = scratch_ + turn_ * 2 * kNormWarps;
    turn_ ^= 1;
    const int first = threadIdx.y * warps;
    if (lane == 0) {
      turn[first + threadIdx.x / kWarpSize] = a;
      turn[kNormWarps + first + threadIdx.x / kWarpSize] = b;
    }
    __syncthreads();
    a = warp_sum(lane < warps ? turn[first + lane] : 0.0f);
    b = warp_sum(lane < warps ? turn[kNormWarps + first + lane] : 0.0f);
  }

  __device__ __forceinline__ float sum(float a) {
    float none = 0.0f;
    sum(a, none);
    return a;
  }

 private:
  float* scratch_;
  int turn_ = 0;
};

// Threads of a row of `units`, each of which takes `units_of_thread`.
inline dim3 norm_block(int64_t units, int units_of_thread) {
  const int64_t warps = ceil_div(ceil_div(units, units_of_thread), kWarpSize);
  const int row_warps = static_cast<int>(std::min<int64_t>(warps, kNormWarps));
  const int rows = std::max(1, kNormWarps / 2 / row_warps);
  return dim3(static_cast<unsigned>(row_warps * kWarpSize), static_cast<unsigned>(rows));
}

// Packs of a row that one thread holds; 0 where a row does not fit into the registers of a block.
template <class T>
inline int packs_of_thread(int64_t hidden) {
  const int64_t packs = hidden / kPackSize<T>;
  if (packs <= kNormThreads / 2) return 1;
  if (packs <= kNormThreads * 2) return 2;
  return packs <= kNormThreads * kRegisterPacks ? kRegisterPacks : 0;
}

}  // namespace
}  // namespace roots
