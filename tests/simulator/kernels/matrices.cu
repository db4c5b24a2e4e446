// Matrix products and the loads of their operands, and asynchronous copies.
#include "entry.h"

namespace roots {
namespace {

// d += a b for whole matrices a [16,16], b [16,8], d [16,8], distributed as the comment of
// instructions.cuh says.
template <class T>
__global__ void product_kernel(const uint16_t* a, const uint16_t* b, float* d) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  const auto pair = [](const uint16_t* first, const uint16_t* second) {
    return *first | static_cast<uint32_t>(*second) << 16;
  };
  uint32_t fragment_a[4], fragment_b[2];
  float sum[4];
  for (int i = 0; i < 4; ++i) {
    const uint16_t* const at = a + (g + 8 * (i % 2)) * 16 + 2 * t + 8 * (i / 2);
    fragment_a[i] = pair(at, at + 1);
    sum[i] = d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2];
  }
  for (int i = 0; i < 2; ++i) {
    const uint16_t* const at = b + (2 * t + 8 * i) * 8 + g;
    fragment_b[i] = pair(at, at + 8);
  }
  multiply_add<T>(sum, fragment_a, fragment_b);
  for (int i = 0; i < 4; ++i) d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = sum[i];
}

// registers [32, kCount]: what every lane gets of kCount matrices [8,8]; `shift` elements misplace
// the rows.
template <int kCount, bool kTransposed>
__global__ void load_kernel(const uint16_t* matrices, uint32_t* registers, int shift) {
  ROOTS_DYNAMIC_SHARED(uint16_t, kept);
  for (int i = threadIdx.x; i < 64 * kCount; i += 32) kept[i] = matrices[i];
  __syncwarp();
  uint32_t mine[kCount];
  load_matrices<kTransposed>(mine, kept + threadIdx.x % (8 * kCount) * 8 + shift);
  for (int i = 0; i < kCount; ++i) registers[threadIdx.x * kCount + i] = mine[i];
}

enum Wait : int { kAll, kNone, kOldest };

// Two groups of one copy a thread; y [2, 4 threads] is what is there after the wait.
__global__ void copy_kernel(const float* x, float* y, int wait, int source_bytes) {
  ROOTS_DYNAMIC_SHARED(float, kept);
  const int i = 4 * threadIdx.x, n = 4 * blockDim.x;
  copy_async_16(kept + i, x + i, source_bytes);
  copy_async_commit();
  copy_async_16(kept + n + i, x + n + i, source_bytes);
  copy_async_commit();
  if (wait == kAll) copy_async_wait<0>();
  if (wait == kOldest) copy_async_wait<1>();
  for (int k = 0; k < 4; ++k) {
    y[i + k] = kept[i + k];
    y[n + i + k] = kept[n + i + k];
  }
}

__global__ void misplaced_copy_kernel(const float* x, float* own, int target_shift,
                                      int source_shift) {
  ROOTS_DYNAMIC_SHARED(float, kept);
  copy_async_16(own != nullptr ? own : kept + target_shift, x + source_shift);
}

__global__ void exp2_kernel(const float* x, float* y) {
  y[threadIdx.x] = exp2_approximate(x[threadIdx.x]);
}

template <int kCount>
Status launch_load(const uint16_t* matrices, uint32_t* registers, int transposed, int shift) {
  return launch(transposed ? load_kernel<kCount, true> : load_kernel<kCount, false>, dim3(1),
                dim3(32), size_t{128} * kCount, nullptr, matrices, registers, shift);
}

}  // namespace

ROOTS_ENTRY product(const uint16_t* a, const uint16_t* b, float* d, int bfloat16) {
  return report([&] {
    return launch(bfloat16 ? product_kernel<__nv_bfloat16> : product_kernel<__half>, dim3(1),
                  dim3(32), 0, nullptr, a, b, d);
  });
}

ROOTS_ENTRY load(const uint16_t* matrices, uint32_t* registers, int count, int transposed,
                 int shift) {
  return report([&] {
    return count == 1   ? launch_load<1>(matrices, registers, transposed, shift)
           : count == 2 ? launch_load<2>(matrices, registers, transposed, shift)
                        : launch_load<4>(matrices, registers, transposed, shift);
  });
}

ROOTS_ENTRY copies(const float* x, float* y, int threads, int wait, int source_bytes) {
  return report([&] {
    return launch(copy_kernel, dim3(1), dim3(threads), static_cast<size_t>(32 * threads), nullptr,
                  x, y, wait, source_bytes);
  });
}

ROOTS_ENTRY misplaced_copy(const float* x, float* own, int target_shift, int source_shift) {
  return report([&] {
    return launch(misplaced_copy_kernel, dim3(1), dim3(1), 64, nullptr, x, own, target_shift,
                  source_shift);
  });
}

ROOTS_ENTRY exp2_of(const float* x, float* y, int count) {
  return report([&] { return launch(exp2_kernel, dim3(1), dim3(count), 0, nullptr, x, y); });
}

}  // namespace roots
