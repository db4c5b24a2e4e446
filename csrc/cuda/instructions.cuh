// The instructions that CUDA C++ has no functions for: matrix products, their loads, asynchronous
// copies, named barriers, exp2. On a GPU inline PTX (sm_80 and later), in the simulator an
// emulation that is exact to the lane. Included by device.cuh; the only place of inline PTX.
//
// multiply_add<T>(d, a, b)      d += a b by one warp: mma.sync.m16n8k16.row.col, T half or
// bfloat16,
//                               d in float. Lane 4g + t holds
//                                 a[0], a[1], a[2], a[3]: a[g][2t], a[g+8][2t], a[g][2t+8],
//                                   a[g+8][2t+8], each with its right neighbour in the high half
//                                 b[0], b[1]: b[2t][g], b[2t+8][g], each with the one below it
//                                 d[0], d[1], d[2], d[3]: d[g][2t], d[g][2t+1], d[g+8][2t],
//                                   d[g+8][2t+1]
// load_matrices(registers, row) as many 8x8 matrices of 16-bit elements as there are registers (1,
//                               2 or 4): lane 8m + r gives the address, in shared memory and a
//                               multiple of 16 bytes, of row r of matrix m; lane 4g + t receives
//                               elements [g][2t], [g][2t+1] of each, or with <true> (transposed)
//                               [2t][g], [2t+1][g]
// copy_async_16(target, source, source_bytes)  16 bytes from global to shared memory, past the
//                               registers; of `source` only the first source_bytes (0 to 16) are
//                               read, the rest becomes zero
// copy_async_commit()           the copies of this thread since the last one become a group
// copy_async_wait<N>()          until at most the N newest groups of this thread are under way;
// what
//                               other threads copied is visible after a barrier besides
// barrier_sync(id, threads)     waits until `threads` (a multiple of 32) are at barrier id, 1 to 15
// barrier_arrive(id, threads)   counts as being there, without waiting
// opaque(x)                     x, of which the compiler knows nothing: what follows from it is
//                               computed anew where it is needed, and takes no registers till then
// exp2_approximate(x)           2^x with a relative error of 2^-22; results below 2^-126 become 0
#pragma once

namespace roots {

#if defined(ROOTS_BACKEND_SIMULATOR)

template <class T>
inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                         ROOTS_SIMULATOR_CALLER) {
  constexpr bool kBFloat16 = std::is_same<T, __nv_bfloat16>::value;
  static_assert(kBFloat16 || std::is_same<T, __half>::value, "of half or bfloat16");
  simulator::matrix_multiply(d, a, b, kBFloat16, ROOTS_SIMULATOR_SITE("multiply_add"));
}

template <bool kTransposed = false, int kCount>
inline void load_matrices(uint32_t (&registers)[kCount], const void* row, ROOTS_SIMULATOR_CALLER) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4, "1, 2 or 4 matrices");
  simulator::load_matrices(registers, kCount, kTransposed, row,
                           ROOTS_SIMULATOR_SITE("load_matrices"));
}

inline void copy_async_16(void* target, const void* source, int source_bytes = 16) {
  simulator::copy_async_16(target, source, source_bytes);
}
inline void copy_async_commit() { simulator::copy_async_commit(); }
template <int kNewestLeft>
inline void copy_async_wait() {
  simulator::copy_async_wait(kNewestLeft);
}

inline void barrier_sync(int id, int threads, ROOTS_SIMULATOR_CALLER) {
  simulator::named_barrier(id, threads, true, ROOTS_SIMULATOR_SITE("barrier_sync"));
}
inline void barrier_arrive(int id, int threads, ROOTS_SIMULATOR_CALLER) {
  simulator::named_barrier(id, threads, false, ROOTS_SIMULATOR_SITE("barrier_arrive"));
}

inline int opaque(int x) { return x; }

inline float exp2_approximate(float x) { return simulator::exp2_approximate(x); }

#else

template <class T>
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]);
template <>
__device__ __forceinline__ void multiply_add<__half>(float (&d)[4], const uint32_t (&a)[4],
                                                     const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ __forceinline__ void multiply_add<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4],
                                                            const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

template <bool kTransposed = false>
__device__ __forceinline__ void load_matrices(uint32_t (&r)[1], const void* row) {
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];\n"
                 : "=r"(r[0])
                 : "r"(shared_address(row)));
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];\n"
                 : "=r"(r[0])
                 : "r"(shared_address(row)));
  }
}

template <bool kTransposed = false>
__device__ __forceinline__ void load_matrices(uint32_t (&r)[2], const void* row) {
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];\n"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row)));
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];\n"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row)));
  }
}

template <bool kTransposed = false>
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void* row) {
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row)));
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row)));
  }
}

// .cg: through L2 only; what is copied to shared memory is not wanted in L1.
__device__ __forceinline__ void copy_async_16(void* target, const void* source,
                                              int source_bytes = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(target)),
               "l"(__cvta_generic_to_global(source)), "r"(source_bytes)
               : "memory");
}
__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}
template <int kNewestLeft>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kNewestLeft) : "memory");
}

__device__ __forceinline__ void barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

__device__ __forceinline__ float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

#endif

// Two values in one register, the first in the low half; rounded to the nearest.
template <class T>
__device__ __forceinline__ uint32_t pack_pair(float first, float second) {
  const Pack<T, 2> pair = {{from_float<T>(first), from_float<T>(second)}};
  uint32_t bits;
  memcpy(&bits, &pair, sizeof(bits));
  return bits;
}

template <class T>
__device__ __forceinline__ float2 unpack_pair(uint32_t bits) {
  Pack<T, 2> pair;
  memcpy(&pair, &bits, sizeof(bits));
  return make_float2(to_float(pair.values[0]), to_float(pair.values[1]));
}

}  // namespace roots
