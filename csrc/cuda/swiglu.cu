// swiglu on a GPU. A thread handles one pack (16 bytes) of gate and of up; blockIdx.x is a row of
// x, or in backward with a bias a block of rows whose gradients the thread adds up, so that no
// division is needed. Forward moves 3 width elements a row, backward 5; both are bound by memory.

#include "../ops/swiglu.h"
#include "activation.cuh"
#include "column_sum.cuh"
#include "device.cuh"
#include "row_grid.cuh"

namespace roots {
namespace {

// Elements i, ..., i + kSize - 1 of both halves of a row, with bias.
template <int kSize>
struct Gated {
  float gate[kSize], up[kSize];
};

template <class T, int kSize>
__device__ __forceinline__ Gated<kSize> load_gated(const void* x, const void* bias, int64_t row,
                                                   int64_t width, int64_t i) {
  const T* gate = static_cast<const T*>(x) + row * 2 * width + i;
  const auto g = load_pack<kSize>(gate), u = load_pack<kSize>(gate + width);
  Pack<T, kSize> gate_bias{}, up_bias{};
  if (bias != nullptr) {
    gate_bias = load_pack<kSize>(static_cast<const T*>(bias) + i);
    up_bias = load_pack<kSize>(static_cast<const T*>(bias) + width + i);
  }
  Gated<kSize> result;
#pragma unroll
  for (int k = 0; k < kSize; ++k) {
    result.gate[k] = to_float(g.values[k]) + to_float(gate_bias.values[k]);
    result.up[k] = to_float(u.values[k]) + to_float(up_bias.values[k]);
  }
  return result;
}

template <class T, int kSize>
__global__ void forward_kernel(SwigluForward args) {
  const int64_t i = first_column(kSize), row = blockIdx.x;
  if (i >= args.width) return;
  const auto x = load_gated<T, kSize>(args.x, args.bias, row, args.width, i);
  Pack<T, kSize> y;
#pragma unroll
  for (int k = 0; k < kSize; ++k) {
    y.values[k] = from_float<T>(x.gate[k] * logistic<T>(x.gate[k]).below * x.up[k]);
  }
  store_pack(static_cast<T*>(args.y) + row * args.width + i, y);
}

// With s = sigmoid(gate): dup = dy gate s, dgate = dy up s (1 + gate (1 - s)).
template <class T, int kSize>
__device__ __forceinline__ Gated<kSize> gradients(const SwigluBackward& args, int64_t row,
                                                  int64_t i) {
  const auto dy = load_pack<kSize>(static_cast<const T*>(args.dy) + row * args.width + i);
  const auto x = load_gated<T, kSize>(args.x, args.bias, row, args.width, i);
  Gated<kSize> dx;
#pragma unroll
  for (int k = 0; k < kSize; ++k) {
    const Logistic s = logistic<T>(x.gate[k]);
    const float d = to_float(dy.values[k]);
    dx.gate[k] = d * x.up[k] * s.below * fmaf(x.gate[k], s.above, 1.0f);
    dx.up[k] = d * x.gate[k] * s.below;
  }
  return dx;
}

template <class T, int kSize>
__device__ __forceinline__ void store_as(T* target, const float (&values)[kSize]) {
  Pack<T, kSize> pack;
#pragma unroll
  for (int k = 0; k < kSize; ++k) pack.values[k] = from_float<T>(values[k]);
  store_pack(target, pack);
}

template <class T, int kSize, bool kBias>
__global__ void backward_kernel(SwigluBackward args, int64_t rows_of_block) {
  const int64_t width = args.width, i = first_column(kSize);
  if (i >= width) return;
  const int64_t first = blockIdx.x * rows_of_block;
  const int64_t end = min(first + rows_of_block, args.rows);
  Gated<kSize> sum{};
#pragma unroll 2
  for (int64_t row = first; row < end; ++row) {
    const auto dx = gradients<T, kSize>(args, row, i);
    T* target = static_cast<T*>(args.dx) + row * 2 * width + i;
    store_as(target, dx.gate);
    store_as(target + width, dx.up);
    if (kBias) {
#pragma unroll
      for (int k = 0; k < kSize; ++k) {
        sum.gate[k] += dx.gate[k];
        sum.up[k] += dx.up[k];
      }
    }
  }
  if (kBias) {
    float* partial = args.partial + blockIdx.x * 2 * width + i;
    store_sums(partial, sum.gate);
    store_sums(partial + width, sum.up);
  }
}

template <class T, int kSize>
Status launch_backward(const SwigluBackward& args, Stream stream) {
  if (args.bias == nullptr) {
    return launch(backward_kernel<T, kSize, false>, row_grid(args.rows, args.width, kSize),
                  dim3(kRowThreads), 0, stream, args, int64_t{1});
  }
  const dim3 grid = row_grid(num_sum_blocks(args.rows), args.width, kSize);
  const Status status = launch(backward_kernel<T, kSize, true>, grid, dim3(kRowThreads), 0, stream,
                               args, sum_block_rows(args.rows));
  if (status != 0) return status;
  return add_partial_sums(args.partial, args.dbias, args.rows, 2 * args.width, stream);
}

}  // namespace

Status swiglu_forward(const SwigluForward& args, Stream stream) {
  return with_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int kWide = kPackSize<T>;
    const bool wide = args.width % kWide == 0 && is_aligned(args.x, 16) && is_aligned(args.y, 16) &&
                      is_aligned(args.bias, 16);
    return wide ? launch(forward_kernel<T, kWide>, row_grid(args.rows, args.width, kWide),
                         dim3(kRowThreads), 0, stream, args)
                : launch(forward_kernel<T, 1>, row_grid(args.rows, args.width, 1),
                         dim3(kRowThreads), 0, stream, args);
  });
}

Status swiglu_backward(const SwigluBackward& args, Stream stream) {
  return with_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const bool wide = args.width % kPackSize<T> == 0 && is_aligned(args.dy, 16) &&
                      is_aligned(args.x, 16) && is_aligned(args.dx, 16) &&
                      is_aligned(args.bias, 16) && is_aligned(args.partial, 16);
    return wide ? launch_backward<T, kPackSize<T>>(args, stream)
                : launch_backward<T, 1>(args, stream);
  });
}

}  // namespace roots
