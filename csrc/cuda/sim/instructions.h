// The instructions that ../device.cuh wraps.
#pragma once

#include "block.h"
#include "memory.h"

namespace roots::simulator {

// mma.sync.m16n8k16, row.col, accumulators in float. Element formats: true bfloat16, false half.
void matrix_multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool bfloat16,
                     const Site& site);

// ldmatrix.x1, .x2, .x4: `row` of lane 8m + r is row r of the m-th 8x8 matrix of 16-bit elements.
void load_matrices(uint32_t* registers, int count, bool transposed, const void* row,
                   const Site& site);

// cp.async of 16 bytes, of which the first `source_bytes` are copied and the rest is zero. Until
// the copy is waited for, the target holds poison.
void copy_async_16(void* target, const void* source, int source_bytes);
void copy_async_commit();
void copy_async_wait(int newest_groups_left);  // -1: for all, committed or not

// ex2.approx.ftz.f32
inline float exp2_approximate(float x) {
  const float y = exp2f(x);
  return y < 1.17549435e-38f ? 0.0f : y;
}

// bar.sync and bar.arrive. Barrier 0 is that of __syncthreads.
inline void named_barrier(int id, int num_threads, bool waits, const Site& site) {
  if (id < 0 || id >= kNumBarriers || num_threads < 1 || num_threads % kWarpSize != 0) {
    fail(to_string(site) + " with id " + std::to_string(id) + " and " +
         std::to_string(num_threads) + " threads; ids are 0 to 15, threads come in warps");
  }
  current_block->synchronise(id, num_threads, waits, false, site);
}

}  // namespace roots::simulator
