// Shuffles, votes and __syncwarp: right, and wrongly used.
#include "entry.h"

namespace roots {
namespace {

enum Shuffle : int { kFrom, kUp, kDown, kXor };

__global__ void shuffle_kernel(int kind, int operand, int width, int* y) {
  const int lane = threadIdx.x;
  int result = 0;
  switch (kind) {
    case kFrom:
      result = __shfl_sync(kFullMask, lane, operand, width);
      break;
    case kUp:
      result = __shfl_up_sync(kFullMask, lane, static_cast<unsigned>(operand), width);
      break;
    case kDown:
      result = __shfl_down_sync(kFullMask, lane, static_cast<unsigned>(operand), width);
      break;
    default:
      result = __shfl_xor_sync(kFullMask, lane, operand, width);
  }
  y[lane] = result;
}

// Halves of a warp that reduce by themselves, in the order that suits them.
__global__ void halves_kernel(const float* x, float* y) {
  const int lane = threadIdx.x % 32;
  const unsigned mask = lane < 16 ? 0xffffu : 0xffff0000u;
  float sum = x[threadIdx.x];
  for (int offset = 8; offset > 0; offset /= 2) sum += __shfl_xor_sync(mask, sum, offset);
  y[threadIdx.x] = sum;
}

__global__ void votes_kernel(const int* votes, unsigned* results) {
  const int lane = threadIdx.x, vote = votes[lane];
  unsigned* const mine = results + 6 * lane;
  mine[0] = __ballot_sync(kFullMask, vote > 1);
  mine[1] = static_cast<unsigned>(__any_sync(kFullMask, vote > 1));
  mine[2] = static_cast<unsigned>(__all_sync(kFullMask, vote > 1));
  mine[3] = __match_any_sync(kFullMask, vote);
  mine[4] = static_cast<unsigned>(__reduce_add_sync(kFullMask, vote));
  mine[5] = static_cast<unsigned>(__reduce_max_sync(kFullMask, vote));
}

enum Misuse : int {
  kOwnLane,
  kAbsentLane,
  kExitedLane,
  kTwoPlaces,
  kTwoMasks,
  kOutsideMask,
  kWidth
};

__global__ void misuse_kernel(int kind, int* y) {
  const int lane = threadIdx.x % 32;
  int value = lane;
  if (kind == kOwnLane) value = __shfl_sync(0xfffffffeu, value, 1);
  if (kind == kAbsentLane) value = __shfl_sync(kFullMask, value, 1);
  if (kind == kExitedLane) {
    if (lane == 31) return;
    value = __shfl_sync(kFullMask, value, 1);
  }
  if (kind == kTwoPlaces) {
    if (lane < 16) {
      value = __shfl_sync(kFullMask, value, 1);
    } else {
      value = __shfl_sync(kFullMask, value, 2);
    }
  }
  if (kind == kTwoMasks) value = __shfl_sync(lane < 16 ? kFullMask : 0x7fffffffu, value, 1);
  if (kind == kOutsideMask && lane < 16) value = __shfl_sync(0xffffu, value, 20);
  if (kind == kWidth) value = __shfl_sync(kFullMask, value, 1, 12);
  y[threadIdx.x] = value;
}

// Neighbours exchange through shared memory; volatile, as a careful author would have it.
template <bool kBarrier>
__global__ void neighbour_kernel(const int* x, int* y) {
  ROOTS_STATIC_SHARED(int[32], kept);
  volatile int* const slots = kept;
  const int lane = threadIdx.x;
  slots[lane] = x[lane];
  if (kBarrier) __syncwarp();
  y[lane] = slots[(lane + 1) % 32];
}

}  // namespace

ROOTS_ENTRY shuffle(int kind, int operand, int width, int* y) {
  return report([&] {
    return launch(shuffle_kernel, dim3(1), dim3(32), 0, nullptr, kind, operand, width, y);
  });
}

ROOTS_ENTRY halves(const float* x, float* y) {
  return report([&] { return launch(halves_kernel, dim3(1), dim3(64), 0, nullptr, x, y); });
}

ROOTS_ENTRY votes(const int* votes, unsigned* results) {
  return report(
      [&] { return launch(votes_kernel, dim3(1), dim3(32), 0, nullptr, votes, results); });
}

ROOTS_ENTRY misuse(int kind, int threads, int* y) {
  return report([&] { return launch(misuse_kernel, dim3(1), dim3(threads), 0, nullptr, kind, y); });
}

ROOTS_ENTRY neighbour(const int* x, int* y, int barrier) {
  return report([&] {
    return launch(barrier ? neighbour_kernel<true> : neighbour_kernel<false>, dim3(1), dim3(32), 0,
                  nullptr, x, y);
  });
}

}  // namespace roots
