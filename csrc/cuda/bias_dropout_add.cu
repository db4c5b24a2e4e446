// bias_dropout_add on a GPU. A thread handles one pack (16 bytes); blockIdx.x is a token, or in
// backward with a bias a block of tokens whose gradients the thread adds up. The mask is computed
// anew in both directions, 9 integer instructions an element, and never stored: forward moves 3
// hidden elements a token, backward 2.

#include "../ops/bias_dropout_add.h"
#include "column_sum.cuh"
#include "device.cuh"
#include "row_grid.cuh"

namespace roots {
namespace {

// What one token keeps of its elements, times the scale; everything without keys.
struct TokenMask {
  bool drops;
  uint32_t low, high;
  int32_t threshold;
  float scale;

  __device__ __forceinline__ TokenMask(const Dropout& dropout, int64_t row)
      : drops(dropout.keys != nullptr), threshold(dropout.threshold), scale(dropout.scale) {
    const uint64_t key = drops ? static_cast<uint64_t>(dropout.keys[row]) : 0;
    low = static_cast<uint32_t>(key);
    high = static_cast<uint32_t>(key >> 32);
  }

  __device__ __forceinline__ float apply(float value, int64_t element) const {
    if (!drops) return value;
    uint32_t v = low + static_cast<uint32_t>(element) * kDropoutGamma;
    v ^= v >> 16;
    v = v * kDropoutMix1 + high;
    v ^= v >> 15;
    v *= kDropoutMix2;
    return static_cast<int32_t>(v) >= threshold ? value * scale : 0.0f;
  }
};

// The pack at `source` + `offset`, or zeros where there is no source.
template <class T, int kSize>
__device__ __forceinline__ Pack<T, kSize> load_or_zero(const void* source, int64_t offset) {
  Pack<T, kSize> pack{};
  if (source != nullptr) pack = load_pack<kSize>(static_cast<const T*>(source) + offset);
  return pack;
}

template <class T, int kSize>
__global__ void forward_kernel(BiasDropoutAddForward args) {
  const int64_t i = first_column(kSize), at = blockIdx.x * args.width + i;
  if (i >= args.width) return;
  const TokenMask mask(args.dropout, blockIdx.x);
  const auto x = load_pack<kSize>(static_cast<const T*>(args.x) + at);
  const auto residual = load_or_zero<T, kSize>(args.residual, at);
  const auto bias = load_or_zero<T, kSize>(args.bias, i);
  Pack<T, kSize> y;
#pragma unroll
  for (int k = 0; k < kSize; ++k) {
    const float kept = mask.apply(to_float(x.values[k]) + to_float(bias.values[k]), i + k);
    y.values[k] = from_float<T>(to_float(residual.values[k]) + kept);
  }
  store_pack(static_cast<T*>(args.y) + at, y);
}

template <class T, int kSize, bool kBias>
__global__ void backward_kernel(BiasDropoutAddBackward args, int64_t rows_of_block) {
  const int64_t i = first_column(kSize);
  if (i >= args.width) return;
  const int64_t first = blockIdx.x * rows_of_block;
  const int64_t end = min(first + rows_of_block, args.rows);
  float sums[kSize] = {};
#pragma unroll 2
  for (int64_t row = first; row < end; ++row) {
    const int64_t at = row * args.width + i;
    const TokenMask mask(args.dropout, row);
    const auto dy = load_pack<kSize>(static_cast<const T*>(args.dy) + at);
    Pack<T, kSize> dx;
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      const float gradient = mask.apply(to_float(dy.values[k]), i + k);
      dx.values[k] = from_float<T>(gradient);
      if (kBias) sums[k] += gradient;
    }
    if (args.dx != nullptr) store_pack(static_cast<T*>(args.dx) + at, dx);
  }
  if (kBias) store_sums(args.partial + blockIdx.x * args.width + i, sums);
}

template <class T, int kSize>
Status launch_backward(const BiasDropoutAddBackward& args, Stream stream) {
  if (args.dbias == nullptr) {
    return launch(backward_kernel<T, kSize, false>, row_grid(args.rows, args.width, kSize),
                  dim3(kRowThreads), 0, stream, args, int64_t{1});
  }
  const dim3 grid = row_grid(num_sum_blocks(args.rows), args.width, kSize);
  const Status status = launch(backward_kernel<T, kSize, true>, grid, dim3(kRowThreads), 0, stream,
                               args, sum_block_rows(args.rows));
  if (status != 0) return status;
  return add_partial_sums(args.partial, args.dbias, args.rows, args.width, stream);
}

}  // namespace

Status bias_dropout_add_forward(const BiasDropoutAddForward& args, Stream stream) {
  return with_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int kWide = kPackSize<T>;
    const bool wide = args.width % kWide == 0 && is_aligned(args.x, 16) && is_aligned(args.y, 16) &&
                      is_aligned(args.bias, 16) && is_aligned(args.residual, 16);
    return wide ? launch(forward_kernel<T, kWide>, row_grid(args.rows, args.width, kWide),
                         dim3(kRowThreads), 0, stream, args)
                : launch(forward_kernel<T, 1>, row_grid(args.rows, args.width, 1),
                         dim3(kRowThreads), 0, stream, args);
  });
}

Status bias_dropout_add_backward(const BiasDropoutAddBackward& args, Stream stream) {
  return with_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const bool wide = args.width % kPackSize<T> == 0 && is_aligned(args.dy, 16) &&
                      is_aligned(args.dx, 16) && is_aligned(args.partial, 16);
    return wide ? launch_backward<T, kPackSize<T>>(args, stream)
                : launch_backward<T, 1>(args, stream);
  });
}

}  // namespace roots
