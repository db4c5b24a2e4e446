// Shared memory, aligned access, atomics, limits of a launch.
#include "entry.h"

namespace roots {
namespace {

// What a block finds in shared memory that it has not written; each then writes zeros.
__global__ void poison_kernel(unsigned* found) {
  ROOTS_STATIC_SHARED(unsigned[2][32], fixed);
  ROOTS_DYNAMIC_SHARED(unsigned, dynamic);
  unsigned* const mine = found + (blockIdx.x * 32 + threadIdx.x) * 3;
  mine[0] = fixed[0][threadIdx.x];
  mine[1] = fixed[1][threadIdx.x];
  mine[2] = dynamic[threadIdx.x];
  fixed[0][threadIdx.x] = fixed[1][threadIdx.x] = dynamic[threadIdx.x] = 0;
}

// One declaration is one variable for all threads and calls, another is another.
__device__ int* shared_by_all() {
  ROOTS_STATIC_SHARED(int[1], value);
  return value;
}
__global__ void identity_kernel(int* y) {
  ROOTS_STATIC_SHARED(int[1], other);
  if (threadIdx.x == 0) *shared_by_all() = 5;
  if (threadIdx.x == 33) other[0] = 7;
  __syncthreads();
  y[threadIdx.x] = 10 * *shared_by_all() + other[0];
}

__global__ void large_kernel() {
  ROOTS_STATIC_SHARED(float[8192], fixed);
  fixed[threadIdx.x] = 0;
}

__global__ void copy_kernel(const float* x, float* y) { store_pack(y, load_pack<4>(x)); }

__global__ void atomic_kernel(const float* x, float* sum, int* largest, unsigned long long* count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  atomicAdd(sum, x[i]);
  atomicMax(largest, static_cast<int>(x[i]));
  atomicAdd(count, 1ull);
}

// Adds by compare and swap, which other blocks may make fail.
__global__ void swap_kernel(unsigned* total) {
  unsigned seen = *total, expected;
  do {
    expected = seen;
    seen = atomicCAS(total, expected, expected + threadIdx.x);
  } while (seen != expected);
}

// The order in which blocks came, and that each came once.
__global__ void order_kernel(unsigned* next, unsigned* order) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  if (threadIdx.x == 0) order[block] = atomicAdd(next, 1u);
}

__global__ void nothing_kernel() {}

}  // namespace

ROOTS_ENTRY poison(unsigned* found, int blocks) {
  return report([&] { return launch(poison_kernel, dim3(blocks), dim3(32), 128, nullptr, found); });
}

ROOTS_ENTRY identity(int* y) {
  return report([&] { return launch(identity_kernel, dim3(1), dim3(64), 0, nullptr, y); });
}

// 32 KB of static shared memory, and `dynamic_bytes` besides.
ROOTS_ENTRY large(int dynamic_bytes) {
  return report([&] {
    return launch(large_kernel, dim3(1), dim3(32), static_cast<size_t>(dynamic_bytes), nullptr);
  });
}

ROOTS_ENTRY copy(const float* x, float* y) {
  return report([&] { return launch(copy_kernel, dim3(1), dim3(1), 0, nullptr, x, y); });
}

ROOTS_ENTRY atomics(const float* x, float* sum, int* largest, unsigned long long* count,
                    int blocks) {
  return report([&] {
    return launch(atomic_kernel, dim3(blocks), dim3(64), 0, nullptr, x, sum, largest, count);
  });
}

ROOTS_ENTRY swaps(unsigned* total, int blocks) {
  return report([&] { return launch(swap_kernel, dim3(blocks), dim3(64), 0, nullptr, total); });
}

ROOTS_ENTRY block_order(unsigned* next, unsigned* order, int x, int y, int z) {
  return report(
      [&] { return launch(order_kernel, dim3(x, y, z), dim3(33), 0, nullptr, next, order); });
}

ROOTS_ENTRY nothing(const unsigned* grid, const unsigned* block, int64_t dynamic_bytes,
                    int allowed_bytes) {
  return report([&] {
    if (allowed_bytes > 0) {
      const cudaError_t error = cudaFuncSetAttribute(
          nothing_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, allowed_bytes);
      if (error != cudaSuccess) return static_cast<Status>(error);
    }
    return launch(nothing_kernel, dim3(grid[0], grid[1], grid[2]),
                  dim3(block[0], block[1], block[2]), static_cast<size_t>(dynamic_bytes), nullptr);
  });
}

}  // namespace roots
