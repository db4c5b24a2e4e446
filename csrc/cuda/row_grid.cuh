// The grid of elementwise kernels over [rows, width]: blockIdx.x is a row or a block of rows, and
// thread (blockIdx.y, threadIdx.x) a pack of columns, so that no index is divided.
#pragma once

#include "device.cuh"

namespace roots {

constexpr int kRowThreads = 256;

// First column of this thread's pack of `size`.
__device__ __forceinline__ int64_t first_column(int size) {
  return (static_cast<int64_t>(blockIdx.y) * kRowThreads + threadIdx.x) * size;
}

inline dim3 row_grid(int64_t blocks_of_rows, int64_t width, int size) {
  return dim3(static_cast<unsigned>(blocks_of_rows),
              static_cast<unsigned>(ceil_div(width, int64_t{kRowThreads} * size)));
}

}  // namespace roots
