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

// Where sums over the rows of partial [num_blocks, num_results, columns] go, one for each
// blockIdx.y.
struct SumResults {
  float* results[2];
};

// A block sums 32 columns of one result: thread (c, p) takes blocks p, p + 16, ..., then thread
// (c, 0) adds the 16 sums in order.
__global__ void add_partial_sums_kernel(const float* partial, SumResults sums, int64_t num_blocks,
                                        int64_t columns) {
  ROOTS_STATIC_SHARED(float[kSumParts][kSumColumns], parts);
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kSumColumns + threadIdx.x;
  const int64_t stride = gridDim.y * columns;
  float sum = 0.0f;
  if (column < columns) {
    const float* source = partial + blockIdx.y * columns + column;
#pragma unroll 4
    for (int64_t block = threadIdx.y; block < num_blocks; block += kSumParts) {
      sum += source[block * stride];
    }
  }
  parts[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= columns) return;
  for (int part = 1; part < kSumParts; ++part) sum += parts[part][threadIdx.x];
  (blockIdx.y == 0 ? sums.results[0] : sums.results[1])[column] = sum;
}

// The second stage, for one result or (`second` not null) two.
inline Status add_partial_rows(const float* partial, int64_t num_blocks, int64_t columns,
                               float* result, float* second, Stream stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(columns, kSumColumns)), second == nullptr ? 1 : 2);
  return launch(add_partial_sums_kernel, grid, dim3(kSumColumns, kSumParts), 0, stream, partial,
                SumResults{{result, second}}, num_blocks, columns);
}

inline Status add_partial_sums(const float* partial, float* result, int64_t rows, int64_t columns,
                               Stream stream) {
  return add_partial_rows(partial, num_sum_blocks(rows), columns, result, nullptr, stream);
}

}  // namespace
}  // namespace roots
