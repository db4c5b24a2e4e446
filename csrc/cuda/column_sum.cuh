// Sums over rows in two stages, see csrc/ops/column_sum.h. In the first a thread adds up its
// columns of one block of rows in registers; here is what follows.
#pragma once

#include "../ops/column_sum.h"
#include "device.cuh"

namespace roots {

template <int kSize>
__device__ __forceinline__ void store_sums(float* target, const float (&sums)[kSize]) {
  constexpr int kStep = kSize < 4 ? kSize : 4;
#pragma unroll
  for (int k = 0; k < kSize; k += kStep) {
    Pack<float, kStep> pack;
#pragma unroll
    for (int j = 0; j < kStep; ++j) pack.values[j] = sums[k + j];
    store_pack(target + k, pack);
  }
}

namespace {

constexpr int kSumColumns = 32, kSumParts = 16;

// A block sums 32 columns of the [num_blocks, columns] partial sums: thread (c, p) blocks p, p +
// 16,
// ..., then thread (c, 0) the 16 results in order.
__global__ void add_partial_sums_kernel(const float* partial, float* result, int64_t num_blocks,
                                        int64_t columns) {
  ROOTS_STATIC_SHARED(float[kSumParts][kSumColumns], parts);
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kSumColumns + threadIdx.x;
  float sum = 0.0f;
  if (column < columns) {
    for (int64_t block = threadIdx.y; block < num_blocks; block += kSumParts) {
      sum += partial[block * columns + column];
    }
  }
  parts[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= columns) return;
  for (int part = 1; part < kSumParts; ++part) sum += parts[part][threadIdx.x];
  result[column] = sum;
}

// The second stage.
inline Status add_partial_sums(const float* partial, float* result, int64_t rows, int64_t columns,
                               Stream stream) {
  return launch(
      add_partial_sums_kernel, dim3(static_cast<unsigned>(ceil_div(columns, kSumColumns))),
      dim3(kSumColumns, kSumParts), 0, stream, partial, result, num_sum_blocks(rows), columns);
}

}  // namespace
}  // namespace roots
