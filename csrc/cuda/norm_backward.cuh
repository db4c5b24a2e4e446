// Backward of layer_norm and rms_norm on a GPU; formulas: csrc/ops/norm.h. Bound by memory: dy and
// the stream are read once, dx is written once. The threads of a row walk over every n-th row and
// add up dweight and dbias of their columns in registers; what they have in the end is a row of
// `partial`, whose n rows a second kernel adds up in order, so that results do not change from run
// to run.
#pragma once

#include "column_sum.cuh"
#include "norm_rows.cuh"

namespace roots {
namespace {

// What of a row its threads need: normal = (value - mean) * rstd.
struct RowStatistics {
  float mean, rstd;
};

template <bool kCentred>
__device__ __forceinline__ RowStatistics statistics_of(const NormBackward& args, int64_t row) {
  return {kCentred ? args.mean[row] : 0.0f, args.rstd[row]};
}

// The sums of g and of g * normal of a row.
struct GradientSums {
  float g = 0.0f, projection = 0.0f;
};

// Adds what a pack has to the sums of its row and to those of its columns.
template <bool kCentred, class T, int kSize>
__device__ __forceinline__ void add_pack(const Pack<T, kSize>& dy, const Pack<T, kSize>& stream,
                                         const Pack<T, kSize>& weight, float one, RowStatistics row,
                                         GradientSums& sums, float (&dweight)[kSize],
                                         float (&dbias)[kSize]) {
#pragma unroll
  for (int e = 0; e < kSize; ++e) {
    const float grad = to_float(dy.values[e]);
    const float normal = (to_float(stream.values[e]) - row.mean) * row.rstd;
    const float g = grad * (to_float(weight.values[e]) + one);
    if (kCentred) sums.g += g;
    sums.projection += g * normal;
    dweight[e] += grad * normal;
    if (kCentred) dbias[e] += grad;
  }
}

// dx of a pack; means: the sums over the row divided by its length.
template <class T, int kSize>
__device__ __forceinline__ Pack<T, kSize> input_gradient(const Pack<T, kSize>& dy,
                                                         const Pack<T, kSize>& stream,
                                                         const Pack<T, kSize>& weight,
                                                         const Pack<T, kSize>& dstream, float one,
                                                         RowStatistics row, GradientSums means) {
  Pack<T, kSize> dx;
#pragma unroll
  for (int e = 0; e < kSize; ++e) {
    const float normal = (to_float(stream.values[e]) - row.mean) * row.rstd;
    const float g = to_float(dy.values[e]) * (to_float(weight.values[e]) + one);
    const float grad = row.rstd * (g - means.g - normal * means.projection);
    dx.values[e] = from_float<T>(grad + to_float(dstream.values[e]));
  }
  return dx;
}

template <class T>
struct PackPair {
  Pack<T, kPackSize<T>> dy, stream;

  __device__ __forceinline__ void load(const NormBackward& args, int64_t at) {
    dy = load_pack<kPackSize<T>>(static_cast<const T*>(args.dy) + at);
    stream = load_pack<kPackSize<T>>(static_cast<const T*>(args.stream) + at);
  }
};

// A thread's packs of one row; not loaded behind the last row and column.
template <class T, int kPacks>
struct RowPacks {
  PackPair<T> packs[kPacks];

  __device__ __forceinline__ void load(const NormBackward& args, int64_t row) {
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      const int64_t i = unit_start<kPackSize<T>>(k);
      if (row < args.rows && i < args.hidden) packs[k].load(args, row * args.hidden + i);
    }
  }
};

// Rows of up to kPacks packs a thread. While one is summed up the next is on its way in registers;
// with kRegisterPacks these are full of the sums of the columns, and a row is read a second time,
// from the first cache.
template <bool kCentred, class T, int kPacks>
__global__ void __launch_bounds__(kNormThreads, 1) norm_backward_kernel(NormBackward args) {
  constexpr int kSize = kPackSize<T>;
  constexpr bool kAhead = kPacks < kRegisterPacks;
  ROOTS_STATIC_SHARED(float[4 * kNormWarps], scratch);
  RowReducer reducer(scratch);
  const int64_t walker = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const int64_t walkers = static_cast<int64_t>(gridDim.x) * blockDim.y;
  const float one = args.zero_centred ? 1.0f : 0.0f, share = 1.0f / args.hidden;
  const T* weights = static_cast<const T*>(args.weight);
  float dweight[kPacks][kSize] = {}, dbias[kPacks][kSize] = {};
  RowPacks<T, kPacks> now, next;
  if (kAhead) now.load(args, walker);
  // All rows of a block count the turns of its first, for the barriers.
  for (int64_t row = walker; row - threadIdx.y < args.rows; row += walkers) {
    const int64_t hidden = row < args.rows ? args.hidden : 0;
    const RowStatistics statistics =
        row < args.rows ? statistics_of<kCentred>(args, row) : RowStatistics{0.0f, 0.0f};
    if (kAhead) next.load(args, row + walkers);
    GradientSums sums;
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      const int64_t i = unit_start<kSize>(k);
      if (i >= hidden) continue;
      if (!kAhead) now.packs[k].load(args, row * hidden + i);
      add_pack<kCentred>(now.packs[k].dy, now.packs[k].stream, load_pack<kSize>(weights + i), one,
                         statistics, sums, dweight[k], dbias[k]);
    }
    reducer.sum(sums.g, sums.projection);
    sums.g *= share;
    sums.projection *= share;
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      const int64_t i = unit_start<kSize>(k), at = row * hidden + i;
      if (i >= hidden) continue;
      if (!kAhead) now.packs[k].load(args, at);
      Pack<T, kSize> dstream{};
      if (args.dstream != nullptr) {
        dstream = load_pack<kSize>(static_cast<const T*>(args.dstream) + at);
      }
      store_pack(static_cast<T*>(args.dx) + at,
                 input_gradient(now.packs[k].dy, now.packs[k].stream, load_pack<kSize>(weights + i),
                                dstream, one, statistics, sums));
    }
    if (kAhead) now = next;
  }
  if (walker >= args.rows) return;
  float* partial = args.partial + walker * (args.dbias == nullptr ? 1 : 2) * args.hidden;
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    const int64_t i = unit_start<kSize>(k);
    if (i >= args.hidden) continue;
    store_sums(partial + i, dweight[k]);
    if (kCentred && args.dbias != nullptr) store_sums(partial + args.hidden + i, dbias[k]);
  }
}

template <int kSize>
__device__ __forceinline__ void load_sums(const float* source, float (&sums)[kSize]) {
#pragma unroll
  for (int e = 0; e < kSize; ++e) sums[e] = source[e];
}

// Rows of any length, kSize elements at a time; a block goes over kLongRows rows together and then
// over them again, so that the sums of the columns, which lie in `partial`, are read and written
// once for all of them.
constexpr int kLongRows = 4;

template <bool kCentred, class T, int kSize>
__global__ void __launch_bounds__(kNormThreads) norm_backward_long_kernel(NormBackward args) {
  ROOTS_STATIC_SHARED(float[4 * kNormWarps], scratch);
  RowReducer reducer(scratch);
  const int64_t hidden = args.hidden, step = blockDim.x * kSize;
  const T* dy = static_cast<const T*>(args.dy);
  const T* stream = static_cast<const T*>(args.stream);
  const float one = args.zero_centred ? 1.0f : 0.0f, share = 1.0f / hidden;
  const bool has_bias = kCentred && args.dbias != nullptr;
  float* partial = args.partial + blockIdx.x * (has_bias ? 2 : 1) * hidden;
  bool first = true;
  for (int64_t base = blockIdx.x; base < args.rows; base += int64_t{kLongRows} * gridDim.x) {
    RowStatistics statistics[kLongRows];
    GradientSums sums[kLongRows];
#pragma unroll
    for (int r = 0; r < kLongRows; ++r) {
      const int64_t row = base + int64_t{r} * gridDim.x;
      statistics[r] =
          row < args.rows ? statistics_of<kCentred>(args, row) : RowStatistics{0.0f, 0.0f};
    }
    for (int64_t i = unit_start<kSize>(0); i < hidden; i += step) {
      const auto weight = load_pack<kSize>(static_cast<const T*>(args.weight) + i);
      float dweight[kSize] = {}, dbias[kSize] = {};
      if (!first) load_sums(partial + i, dweight);
      if (!first && has_bias) load_sums(partial + hidden + i, dbias);
#pragma unroll
      for (int r = 0; r < kLongRows; ++r) {
        const int64_t row = base + int64_t{r} * gridDim.x;
        if (row >= args.rows) continue;
        const int64_t at = row * hidden + i;
        add_pack<kCentred>(load_pack<kSize>(dy + at), load_pack<kSize>(stream + at), weight, one,
                           statistics[r], sums[r], dweight, dbias);
      }
      store_sums(partial + i, dweight);
      if (has_bias) store_sums(partial + hidden + i, dbias);
    }
    first = false;
#pragma unroll
    for (int r = 0; r < kLongRows; ++r) {
      const int64_t row = base + int64_t{r} * gridDim.x;
      reducer.sum(sums[r].g, sums[r].projection);
      sums[r].g *= share;
      sums[r].projection *= share;
      if (row >= args.rows) continue;
      for (int64_t i = unit_start<kSize>(0); i < hidden; i += step) {
        const int64_t at = row * hidden + i;
        const auto weight = load_pack<kSize>(static_cast<const T*>(args.weight) + i);
        Pack<T, kSize> dstream{};
        if (args.dstream != nullptr) {
          dstream = load_pack<kSize>(static_cast<const T*>(args.dstream) + at);
        }
        store_pack(static_cast<T*>(args.dx) + at,
                   input_gradient(load_pack<kSize>(dy + at), load_pack<kSize>(stream + at), weight,
                                  dstream, one, statistics[r], sums[r]));
      }
    }
  }
}

inline Status add_walkers(const NormBackward& args, int64_t walkers, Stream stream) {
  return add_partial_rows(args.partial, std::min(walkers, args.rows), args.hidden, args.dweight,
                          args.dbias, stream);
}

template <bool kCentred, class T, int kPacks>
Status launch_backward(const NormBackward& args, Stream stream) {
  const dim3 block = norm_block(args.hidden / kPackSize<T>, kPacks);
  const int64_t room = max_partial_rows(args.rows, args.hidden) / block.y;
  const int64_t blocks = std::min(ceil_div(args.rows, block.y), std::max<int64_t>(room, 1));
  const Status status = launch(norm_backward_kernel<kCentred, T, kPacks>,
                               dim3(static_cast<unsigned>(blocks)), block, 0, stream, args);
  return status != 0 ? status : add_walkers(args, blocks * block.y, stream);
}

template <bool kCentred, class T, int kSize>
Status launch_backward_long(const NormBackward& args, Stream stream) {
  const int64_t blocks = max_partial_rows(args.rows, args.hidden);
  const Status status =
      launch(norm_backward_long_kernel<kCentred, T, kSize>, dim3(static_cast<unsigned>(blocks)),
             dim3(kNormThreads), 0, stream, args);
  return status != 0 ? status : add_walkers(args, blocks, stream);
}

template <bool kCentred>
Status norm_backward(const NormBackward& args, Stream stream) {
  return with_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const bool packed = args.hidden % kPackSize<T> == 0 && is_aligned(args.dy, 16) &&
                        is_aligned(args.dstream, 16) && is_aligned(args.stream, 16) &&
                        is_aligned(args.weight, 16) && is_aligned(args.dx, 16) &&
                        is_aligned(args.partial, 16);
    if (!packed) return launch_backward_long<kCentred, T, 1>(args, stream);
    switch (packs_of_thread<T>(args.hidden)) {
      case 1:
        return launch_backward<kCentred, T, 1>(args, stream);
      case 2:
        return launch_backward<kCentred, T, 2>(args, stream);
      case kRegisterPacks:
        return launch_backward<kCentred, T, kRegisterPacks>(args, stream);
      default:
        return launch_backward_long<kCentred, T, kPackSize<T>>(args, stream);
    }
  });
}

}  // namespace
}  // namespace roots
