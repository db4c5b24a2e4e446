// Barriers of a block: kept, forgotten, met by some only.
#include "entry.h"

namespace roots {
namespace {

// y = x reversed, through shared memory.
template <bool kBarrier>
__global__ void reverse_kernel(const float* x, float* y) {
  ROOTS_STATIC_SHARED(float[1024], kept);
  kept[threadIdx.x] = x[threadIdx.x];
  if (kBarrier) __syncthreads();
  y[threadIdx.x] = kept[blockDim.x - 1 - threadIdx.x];
}

// Without the second barrier a fast warp overwrites what a slow one has not read.
template <bool kBarrier>
__global__ void rotate_kernel(float* x, int rounds) {
  ROOTS_STATIC_SHARED(float[1024], kept);
  float value = x[threadIdx.x];
  for (int round = 0; round < rounds; ++round) {
    kept[threadIdx.x] = value;
    __syncthreads();
    value = kept[(threadIdx.x + 1) % blockDim.x];
    if (kBarrier) __syncthreads();
  }
  x[threadIdx.x] = value;
}

enum Divergence : int { kHalfWaits, kHalfExits, kTwoPlaces };

__global__ void divergent_kernel(int kind) {
  const bool first = threadIdx.x < 32;
  if (kind == kHalfExits && !first) return;
  if (kind == kHalfWaits) {
    if (first) __syncthreads();
    __syncwarp();
    return;
  }
  if (first) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

// The first warp waits for barriers 1 and 2, of which the second warp comes to neither in time.
__global__ void crossed_kernel() {
  if (threadIdx.x < 32) {
    barrier_sync(1, 64);
    barrier_sync(2, 64);
  } else {
    barrier_sync(2, 64);
    barrier_sync(1, 64);
  }
}

__global__ void vote_kernel(const int* votes, int* results) {
  const int vote = votes[threadIdx.x];
  const int count = __syncthreads_count(vote);
  const int all = __syncthreads_and(vote);
  const int any = __syncthreads_or(vote);
  int* const mine = results + 3 * threadIdx.x;
  mine[0] = count;
  mine[1] = all;
  mine[2] = any;
}

// The first warp makes values that the second consumes; each announces without waiting.
__global__ void hand_over_kernel(const float* x, float* y, int rounds) {
  ROOTS_STATIC_SHARED(float[32], slot);
  const int lane = threadIdx.x % 32;
  for (int round = 0; round < rounds; ++round) {
    if (threadIdx.x < 32) {
      if (round > 0) barrier_sync(2, 64);
      slot[lane] = x[round * 32 + lane];
      barrier_arrive(1, 64);
    } else {
      barrier_sync(1, 64);
      y[round * 32 + lane] = slot[31 - lane];
      if (round + 1 < rounds) barrier_arrive(2, 64);
    }
  }
}

__global__ void odd_barrier_kernel() { barrier_sync(1, 40); }

}  // namespace

ROOTS_ENTRY reverse(const float* x, float* y, int threads, int barrier) {
  return report([&] {
    return launch(barrier ? reverse_kernel<true> : reverse_kernel<false>, dim3(1), dim3(threads), 0,
                  nullptr, x, y);
  });
}

ROOTS_ENTRY rotate(float* x, int threads, int rounds, int barrier) {
  return report([&] {
    return launch(barrier ? rotate_kernel<true> : rotate_kernel<false>, dim3(1), dim3(threads), 0,
                  nullptr, x, rounds);
  });
}

ROOTS_ENTRY divergent(int kind) {
  return report([&] { return launch(divergent_kernel, dim3(1), dim3(64), 0, nullptr, kind); });
}

ROOTS_ENTRY crossed() {
  return report([&] { return launch(crossed_kernel, dim3(1), dim3(64), 0, nullptr); });
}

ROOTS_ENTRY vote(const int* votes, int* results, int threads) {
  return report(
      [&] { return launch(vote_kernel, dim3(1), dim3(threads), 0, nullptr, votes, results); });
}

ROOTS_ENTRY hand_over(const float* x, float* y, int rounds) {
  return report(
      [&] { return launch(hand_over_kernel, dim3(1), dim3(64), 0, nullptr, x, y, rounds); });
}

ROOTS_ENTRY odd_barrier() {
  return report([&] { return launch(odd_barrier_kernel, dim3(1), dim3(64), 0, nullptr); });
}

}  // namespace roots
