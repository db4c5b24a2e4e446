// swiglu on a GPU. A thread handles one pack (16 bytes) of gate and of up; a row of blocks is a row
// of x, so that no division is needed. Moves 3 width elements a row and is bound by memory.

#include "../ops/swiglu.h"
#include "device.cuh"

namespace roots {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ float silu_times(float gate, float up) {
  return gate / (1.0f + __expf(-gate)) * up;
}

template <class T, int kSize>
__global__ void forward_kernel(SwigluForward args) {
  const int64_t width = args.width;
  const int64_t i = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * kSize;
  if (i >= width) return;
  const T* gate = static_cast<const T*>(args.x) + static_cast<int64_t>(blockIdx.x) * 2 * width + i;
  const auto g = load_pack<kSize>(gate), u = load_pack<kSize>(gate + width);
  Pack<T, kSize> gate_bias{}, up_bias{}, y;
  if (args.bias != nullptr) {
    const T* bias = static_cast<const T*>(args.bias) + i;
    gate_bias = load_pack<kSize>(bias);
    up_bias = load_pack<kSize>(bias + width);
  }
#pragma unroll
  for (int k = 0; k < kSize; ++k) {
    y.values[k] = from_float<T>(silu_times(to_float(g.values[k]) + to_float(gate_bias.values[k]),
                                           to_float(u.values[k]) + to_float(up_bias.values[k])));
  }
  store_pack(static_cast<T*>(args.y) + static_cast<int64_t>(blockIdx.x) * width + i, y);
}

template <class T, int kSize>
Status launch_forward(const SwigluForward& args, Stream stream) {
  const dim3 grid(static_cast<unsigned>(args.rows),
                  static_cast<unsigned>(ceil_div(args.width, int64_t{kThreads} * kSize)));
  return launch(forward_kernel<T, kSize>, grid, dim3(kThreads), 0, stream, args);
}

}  // namespace

Status swiglu_forward(const SwigluForward& args, Stream stream) {
  return with_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const bool wide = args.width % kPackSize<T> == 0 && is_aligned(args.x, 16) &&
                      is_aligned(args.y, 16) && is_aligned(args.bias, 16);
    return wide ? launch_forward<T, kPackSize<T>>(args, stream)
                : launch_forward<T, 1>(args, stream);
  });
}

}  // namespace roots
