// Forward of layer_norm and rms_norm on a GPU; formulas: csrc/ops/norm.h. Bound by memory: a row is
// read and written once. The mean goes first and the squared deviations after it, so that a large
// mean costs no digits.
#pragma once

#include <cmath>

#include "norm_rows.cuh"

namespace roots {
namespace {

__device__ __forceinline__ float rstd_of(float squares, int64_t hidden, float epsilon) {
  return 1.0f / sqrtf(squares / static_cast<float>(hidden) + epsilon);
}

template <class T, int kSize>
__device__ __forceinline__ Pack<T, kSize> add_packs(const Pack<T, kSize>& a,
                                                    const Pack<T, kSize>& b) {
  Pack<T, kSize> result;
#pragma unroll
  for (int e = 0; e < kSize; ++e) {
    result.values[e] = from_float<T>(to_float(a.values[e]) + to_float(b.values[e]));
  }
  return result;
}

// The sum of a pack's elements if kCentred, else of their squares.
template <bool kCentred, class T, int kSize>
__device__ __forceinline__ float pack_sum(const Pack<T, kSize>& pack) {
  float total = 0.0f;
#pragma unroll
  for (int e = 0; e < kSize; ++e) {
    const float value = to_float(pack.values[e]);
    total += kCentred ? value : value * value;
  }
  return total;
}

template <class T, int kSize>
__device__ __forceinline__ float pack_deviations(const Pack<T, kSize>& pack, float mean) {
  float total = 0.0f;
#pragma unroll
  for (int e = 0; e < kSize; ++e) {
    const float deviation = to_float(pack.values[e]) - mean;
    total += deviation * deviation;
  }
  return total;
}

// y at the columns i, i + 1, ... of a row that begins at `offset`.
template <bool kCentred, class T, int kSize>
__device__ __forceinline__ void write_normal(const NormForward& args, int64_t offset, int64_t i,
                                             const Pack<T, kSize>& stream, float mean, float rstd) {
  const auto weight = load_pack<kSize>(static_cast<const T*>(args.weight) + i);
  Pack<T, kSize> bias{};
  if (args.bias != nullptr) bias = load_pack<kSize>(static_cast<const T*>(args.bias) + i);
  const float one = args.zero_centred ? 1.0f : 0.0f;
  Pack<T, kSize> y;
#pragma unroll
  for (int e = 0; e < kSize; ++e) {
    const float value = to_float(stream.values[e]);
    const float normal = (kCentred ? value - mean : value) * rstd;
    y.values[e] =
        from_float<T>(normal * (to_float(weight.values[e]) + one) + to_float(bias.values[e]));
  }
  store_pack(static_cast<T*>(args.y) + offset + i, y);
}

template <bool kCentred>
__device__ __forceinline__ void write_statistics(const NormForward& args, int64_t row, float mean,
                                                 float rstd) {
  if (threadIdx.x != 0) return;
  if (kCentred) args.mean[row] = mean;
  args.rstd[row] = rstd;
}

// Rows in registers: kPacks packs a thread.
template <bool kCentred, class T, int kPacks>
__global__ void __launch_bounds__(kNormThreads, 1) norm_forward_kernel(NormForward args) {
  constexpr int kSize = kPackSize<T>;
  ROOTS_STATIC_SHARED(float[4 * kNormWarps], scratch);
  RowReducer reducer(scratch);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  // A row behind the last has no columns, but its threads come to the barriers.
  const int64_t hidden = row < args.rows ? args.hidden : 0, offset = row * args.hidden;
  Pack<T, kSize> values[kPacks] = {};
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    const int64_t i = unit_start<kSize>(k);
    if (i < hidden) values[k] = load_pack<kSize>(static_cast<const T*>(args.x) + offset + i);
  }
  if (args.residual != nullptr) {
    Pack<T, kSize> residual[kPacks] = {};
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      const int64_t i = unit_start<kSize>(k);
      if (i >= hidden) continue;
      residual[k] = load_pack<kSize>(static_cast<const T*>(args.residual) + offset + i);
    }
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      const int64_t i = unit_start<kSize>(k);
      values[k] = add_packs(values[k], residual[k]);
      if (i < hidden) store_pack(static_cast<T*>(args.stream) + offset + i, values[k]);
    }
  }
  float total = 0.0f, mean = 0.0f;
#pragma unroll
  for (int k = 0; k < kPacks; ++k) total += pack_sum<kCentred>(values[k]);
  total = reducer.sum(total);
  if (kCentred) {
    mean = total / static_cast<float>(args.hidden);
    total = 0.0f;
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      if (unit_start<kSize>(k) < hidden) total += pack_deviations(values[k], mean);
    }
    total = reducer.sum(total);
  }
  if (hidden == 0) return;
  const float rstd = rstd_of(total, hidden, args.epsilon);
  write_statistics<kCentred>(args, row, mean, rstd);
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    const int64_t i = unit_start<kSize>(k);
    if (i < hidden) write_normal<kCentred>(args, offset, i, values[k], mean, rstd);
  }
}

// Rows of any length, kSize elements at a time; a block for each.
template <bool kCentred, class T, int kSize>
__global__ void __launch_bounds__(kNormThreads) norm_forward_long_kernel(NormForward args) {
  ROOTS_STATIC_SHARED(float[4 * kNormWarps], scratch);
  RowReducer reducer(scratch);
  const int64_t row = blockIdx.x, offset = row * args.hidden, step = blockDim.x * kSize;
  const T* x = static_cast<const T*>(args.x) + offset;
  float total = 0.0f, mean = 0.0f;
  for (int64_t i = unit_start<kSize>(0); i < args.hidden; i += step) {
    auto value = load_pack<kSize>(x + i);
    if (args.residual != nullptr) {
      const T* residual = static_cast<const T*>(args.residual) + offset;
      value = add_packs(value, load_pack<kSize>(residual + i));
      store_pack(static_cast<T*>(args.stream) + offset + i, value);
    }
    total += pack_sum<kCentred>(value);
  }
  total = reducer.sum(total);
  // What a thread reads below it has written itself.
  if (args.residual != nullptr) x = static_cast<const T*>(args.stream) + offset;
  if (kCentred) {
    mean = total / static_cast<float>(args.hidden);
    total = 0.0f;
    for (int64_t i = unit_start<kSize>(0); i < args.hidden; i += step) {
      total += pack_deviations(load_pack<kSize>(x + i), mean);
    }
    total = reducer.sum(total);
  }
  const float rstd = rstd_of(total, args.hidden, args.epsilon);
  write_statistics<kCentred>(args, row, mean, rstd);
  for (int64_t i = unit_start<kSize>(0); i < args.hidden; i += step) {
    write_normal<kCentred>(args, offset, i, load_pack<kSize>(x + i), mean, rstd);
  }
}

template <bool kCentred, class T, int kPacks>
Status launch_forward(const NormForward& args, Stream stream) {
  const dim3 block = norm_block(args.hidden / kPackSize<T>, kPacks);
  const dim3 grid(static_cast<unsigned>(ceil_div(args.rows, block.y)));
  return launch(norm_forward_kernel<kCentred, T, kPacks>, grid, block, 0, stream, args);
}

template <bool kCentred, class T, int kSize>
Status launch_forward_long(const NormForward& args, Stream stream) {
  return launch(norm_forward_long_kernel<kCentred, T, kSize>,
                dim3(static_cast<unsigned>(args.rows)), dim3(kNormThreads), 0, stream, args);
}

template <bool kCentred>
Status norm_forward(const NormForward& args, Stream stream) {
  return with_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const bool packed = args.hidden % kPackSize<T> == 0 && is_aligned(args.x, 16) &&
                        is_aligned(args.residual, 16) && is_aligned(args.weight, 16) &&
                        is_aligned(args.bias, 16) && is_aligned(args.y, 16) &&
                        is_aligned(args.stream, 16);
    if (!packed) return launch_forward_long<kCentred, T, 1>(args, stream);
    switch (packs_of_thread<T>(args.hidden)) {
      case 1:
        return launch_forward<kCentred, T, 1>(args, stream);
      case 2:
        return launch_forward<kCentred, T, 2>(args, stream);
      case kRegisterPacks:
        return launch_forward<kCentred, T, kRegisterPacks>(args, stream);
      default:
        return launch_forward_long<kCentred, T, kPackSize<T>>(args, stream);
    }
  });
}

}  // namespace
}  // namespace roots
