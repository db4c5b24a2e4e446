// What bindings and kernels of every backend share. Torch-free.
#pragma once

#include <cstdint>

namespace roots {

enum class DType : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

// A cudaStream_t; null on a CPU and in the simulator.
using Stream = void*;

// 0, or a cudaError_t.
using Status = int;

}  // namespace roots

// ROOTS_LAUNCHER(name, Arguments) declares the entry of a kernel in namespace roots:
//   Status name(const Arguments& arguments, Stream stream);
// In the CPU library there is one for every instruction set besides, in roots::avx2, roots::avx512.
#if defined(ROOTS_BACKEND_CPU)
#define ROOTS_LAUNCHER(name, Arguments)                   \
  namespace avx2 {                                        \
  Status name(const Arguments& arguments, Stream stream); \
  }                                                       \
  namespace avx512 {                                      \
  Status name(const Arguments& arguments, Stream stream); \
  }                                                       \
  Status name(const Arguments& arguments, Stream stream);
#else
#define ROOTS_LAUNCHER(name, Arguments) Status name(const Arguments& arguments, Stream stream);
#endif
