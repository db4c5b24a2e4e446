// scaled_masked_softmax on a GPU. Rows of up to 16384 keys are held in the registers of a warp or a
// block, so that they are read once and written once, which is what bounds the kernels; longer rows
// are read twice. A thread holds up to kHeld elements, 16 bytes side by side, counted from the last
// 16-byte boundary at or before the row.

#include "../ops/scaled_masked_softmax.h"
#include "device.cuh"
#include "row.cuh"

namespace roots {
namespace {

constexpr int kHeld = 32;
constexpr int kBlockThreads = 128;
constexpr int kLongThreads = 512;

// The first column that a row's packs count from, 0 or below.
template <class T>
__device__ __forceinline__ int64_t first_column(const T* row) {
  return -(misalignment(row) / static_cast<int>(sizeof(T)));
}

// Elements [column, column + kSize) of a row, `outside` where it has none.
template <int kSize, class T>
__device__ __forceinline__ Pack<T, kSize> load_columns(const T* row, int64_t column, int64_t size,
                                                       T outside) {
  const bool aligned = reinterpret_cast<uintptr_t>(row + column) % sizeof(Pack<T, kSize>) == 0;
  if (aligned && column >= 0 && column + kSize <= size) return load_pack<kSize>(row + column);
  Pack<T, kSize> pack;
#pragma unroll
  for (int k = 0; k < kSize; ++k) {
    const bool inside = column + k >= 0 && column + k < size;
    pack.values[k] = inside ? row[column + k] : outside;
  }
  return pack;
}

template <class T, int kSize>
__device__ __forceinline__ void store_columns(T* row, int64_t column, int64_t size,
                                              const Pack<T, kSize>& pack) {
  const bool aligned = reinterpret_cast<uintptr_t>(row + column) % sizeof(Pack<T, kSize>) == 0;
  if (aligned && column >= 0 && column + kSize <= size) return store_pack(row + column, pack);
#pragma unroll
  for (int k = 0; k < kSize; ++k) {
    if (column + k >= 0 && column + k < size) row[column + k] = pack.values[k];
  }
}

// What a row of scores consists of.
template <class T>
struct ScoreRow {
  const T* scores;
  T* y;
  const void* mask;
  int64_t visible;  // keys in front that may take part

  __device__ ScoreRow(const ScaledMaskedSoftmaxForward& args, int64_t row) {
    // Rows are less than 2^31, which divides faster.
    const unsigned queries = static_cast<unsigned>(args.queries);
    const unsigned heads = static_cast<unsigned>(args.heads);
    const unsigned t = static_cast<unsigned>(row) % queries;
    const unsigned bn = static_cast<unsigned>(row) / queries;
    scores = static_cast<const T*>(args.scores) + row * args.keys;
    y = static_cast<T*>(args.y) + row * args.keys;
    const int64_t place = static_cast<int64_t>(bn / heads) * args.mask_batch_stride +
                          static_cast<int64_t>(bn % heads) * args.mask_head_stride +
                          static_cast<int64_t>(t) * args.mask_query_stride;
    const int64_t size = args.mask_kind == MaskKind::kVisible ? 1 : sizeof(T);
    mask = static_cast<const char*>(args.mask) + place * size;
    const int64_t seen = static_cast<int64_t>(t) + args.keys - args.queries + 1;
    visible = !args.causal || seen > args.keys ? args.keys : seen < 0 ? 0 : seen;
  }

  // scale * score + mask of a pack, -infinity where a key does not take part.
  template <int kSize>
  __device__ __forceinline__ void load(const ScaledMaskedSoftmaxForward& args, int64_t column,
                                       float (&values)[kSize]) const {
    if (column >= visible) {
#pragma unroll
      for (int k = 0; k < kSize; ++k) values[k] = -INFINITY;
      return;
    }
    const auto pack = load_columns<kSize>(scores, column, visible, from_float<T>(0.0f));
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      const bool inside = column + k >= 0 && column + k < visible;
      values[k] = inside ? to_float(pack.values[k]) * args.scale : -INFINITY;
    }
    if (args.mask_kind == MaskKind::kVisible) {
      const auto bytes =
          load_columns<kSize>(static_cast<const uint8_t*>(mask), column, visible, uint8_t{0});
#pragma unroll
      for (int k = 0; k < kSize; ++k) values[k] = bytes.values[k] ? values[k] : -INFINITY;
    } else if (args.mask_kind == MaskKind::kAdded) {
      const auto added =
          load_columns<kSize>(static_cast<const T*>(mask), column, visible, from_float<T>(0.0f));
#pragma unroll
      for (int k = 0; k < kSize; ++k) values[k] += to_float(added.values[k]);
    }
  }

  // p = exp(value - shift) * factor, where nothing visible means factor = 0.
  template <int kSize>
  __device__ __forceinline__ void store(int64_t column, int64_t keys,
                                        const float (&probabilities)[kSize]) const {
    Pack<T, kSize> pack;
#pragma unroll
    for (int k = 0; k < kSize; ++k) pack.values[k] = from_float<T>(probabilities[k]);
    store_columns(y, column, keys, pack);
  }
};

// Sum and maximum over the kThreads threads of a row.
template <int kThreads>
__device__ __forceinline__ float row_sum(float value, float* scratch) {
  if constexpr (kThreads == kWarpSize) {
    return warp_sum(value);
  } else {
    return block_sum(value, scratch);
  }
}

template <int kThreads>
__device__ __forceinline__ float row_max(float value, float* scratch) {
  if constexpr (kThreads == kWarpSize) {
    return warp_max(value);
  } else {
    return block_max(value, scratch);
  }
}

// The row of this thread, of which a block has several if a row is a warp's.
template <int kThreads>
__device__ __forceinline__ int64_t row_of_thread() {
  if constexpr (kThreads > kWarpSize) return blockIdx.x;
  const int64_t warps = blockDim.x / kWarpSize;
  return blockIdx.x * warps + threadIdx.x / kWarpSize;
}

template <class T, int kThreads, int kPacks>
__global__ void __launch_bounds__(kThreads < kBlockThreads ? kBlockThreads : kThreads)
    forward_kernel(ScaledMaskedSoftmaxForward args) {
  constexpr int kSize = kPackSize<T>;
  ROOTS_STATIC_SHARED(float[kWarpSize], scratch);
  const int64_t row = row_of_thread<kThreads>();
  if (row >= args.rows) return;
  const ScoreRow<T> keys(args, row);
  const int64_t first = first_column(keys.scores) + threadIdx.x % kThreads * kSize;
  float values[kPacks][kSize];
  float largest = -INFINITY;
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    keys.load(args, first + p * kThreads * kSize, values[p]);
#pragma unroll
    for (int k = 0; k < kSize; ++k) largest = fmaxf(largest, values[p][k]);
  }
  largest = row_max<kThreads>(largest, scratch);
  const float shift = shift_of(largest);
  float total = 0.0f;
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      values[p][k] = exp_for<T>(values[p][k] - shift);
      total += values[p][k];
    }
  }
  total = row_sum<kThreads>(total, scratch);
  const float factor = total == 0.0f ? 0.0f : 1.0f / total;
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
#pragma unroll
    for (int k = 0; k < kSize; ++k) values[p][k] *= factor;
    keys.store(first + p * kThreads * kSize, args.keys, values[p]);
  }
}

// Rows of any length: a running maximum and sum, then the scores once more.
template <class T>
__global__ void __launch_bounds__(kLongThreads)
    forward_long_kernel(ScaledMaskedSoftmaxForward args) {
  constexpr int kSize = kPackSize<T>;
  ROOTS_STATIC_SHARED(float[2 * kWarpSize], scratch);
  const ScoreRow<T> keys(args, blockIdx.x);
  const int64_t first = first_column(keys.scores) + threadIdx.x * kSize;
  Softmax seen{-INFINITY, 0.0f};
  for (int64_t column = first; column < keys.visible; column += kLongThreads * kSize) {
    float values[kSize];
    keys.load(args, column, values);
    float largest = seen.maximum;
#pragma unroll
    for (int k = 0; k < kSize; ++k) largest = fmaxf(largest, values[k]);
    const float shift = shift_of(largest);
    seen.sum *= exp_for<T>(seen.maximum - shift);
    seen.maximum = largest;
#pragma unroll
    for (int k = 0; k < kSize; ++k) seen.sum += exp_for<T>(values[k] - shift);
  }
  seen = block_merge(seen, scratch);
  const float shift = shift_of(seen.maximum);
  const float factor = seen.sum == 0.0f ? 0.0f : 1.0f / seen.sum;
  for (int64_t column = first; column < args.keys; column += kLongThreads * kSize) {
    float values[kSize];
    keys.load(args, column, values);
#pragma unroll
    for (int k = 0; k < kSize; ++k) values[k] = exp_for<T>(values[k] - shift) * factor;
    keys.store(column, args.keys, values);
  }
}

// dscores = scale * y * (dy - sum(dy * y)) of one pack; packs stay in T to save registers.
template <class T, int kSize>
__device__ __forceinline__ Pack<T, kSize> gradient(const Pack<T, kSize>& dy,
                                                   const Pack<T, kSize>& y, float dot,
                                                   float scale) {
  Pack<T, kSize> result;
#pragma unroll
  for (int k = 0; k < kSize; ++k) {
    result.values[k] =
        from_float<T>((to_float(dy.values[k]) - dot) * to_float(y.values[k]) * scale);
  }
  return result;
}

template <class T, int kSize>
__device__ __forceinline__ float dot_product(const Pack<T, kSize>& a, const Pack<T, kSize>& b) {
  float total = 0.0f;
#pragma unroll
  for (int k = 0; k < kSize; ++k) total += to_float(a.values[k]) * to_float(b.values[k]);
  return total;
}

template <class T, int kThreads, int kPacks>
__global__ void __launch_bounds__(kThreads < kBlockThreads ? kBlockThreads : kThreads)
    backward_kernel(ScaledMaskedSoftmaxBackward args) {
  constexpr int kSize = kPackSize<T>;
  ROOTS_STATIC_SHARED(float[kWarpSize], scratch);
  const int64_t row = row_of_thread<kThreads>();
  if (row >= args.rows) return;
  const T* dy = static_cast<const T*>(args.dy) + row * args.keys;
  const T* y = static_cast<const T*>(args.y) + row * args.keys;
  T* dscores = static_cast<T*>(args.dscores) + row * args.keys;
  const int64_t first = first_column(y) + threadIdx.x % kThreads * kSize;
  const T zero = from_float<T>(0.0f);
  Pack<T, kSize> gradients[kPacks], values[kPacks];
  float dot = 0.0f;
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int64_t column = first + p * kThreads * kSize;
    gradients[p] = load_columns<kSize>(dy, column, args.keys, zero);
    values[p] = load_columns<kSize>(y, column, args.keys, zero);
  }
#pragma unroll
  for (int p = 0; p < kPacks; ++p) dot += dot_product(gradients[p], values[p]);
  dot = row_sum<kThreads>(dot, scratch);
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    store_columns(dscores, first + p * kThreads * kSize, args.keys,
                  gradient(gradients[p], values[p], dot, args.scale));
  }
}

template <class T>
__global__ void __launch_bounds__(kLongThreads)
    backward_long_kernel(ScaledMaskedSoftmaxBackward args) {
  constexpr int kSize = kPackSize<T>;
  ROOTS_STATIC_SHARED(float[kWarpSize], scratch);
  const int64_t start = static_cast<int64_t>(blockIdx.x) * args.keys;
  const T* dy = static_cast<const T*>(args.dy) + start;
  const T* y = static_cast<const T*>(args.y) + start;
  T* dscores = static_cast<T*>(args.dscores) + start;
  const int64_t first = first_column(y) + threadIdx.x * kSize;
  const T zero = from_float<T>(0.0f);
  float dot = 0.0f;
  for (int64_t column = first; column < args.keys; column += kLongThreads * kSize) {
    dot += dot_product(load_columns<kSize>(dy, column, args.keys, zero),
                       load_columns<kSize>(y, column, args.keys, zero));
  }
  dot = block_sum(dot, scratch);
  for (int64_t column = first; column < args.keys; column += kLongThreads * kSize) {
    store_columns(dscores, column, args.keys,
                  gradient(load_columns<kSize>(dy, column, args.keys, zero),
                           load_columns<kSize>(y, column, args.keys, zero), dot, args.scale));
  }
}

template <int kThreads_, int kElements_>
struct Shape {
  static constexpr int kThreads = kThreads_, kElements = kElements_;
};

// f(Shape) of the smallest shape that holds a row, or `otherwise`. A row that begins off a 16-byte
// boundary can need one pack more.
template <class T, class F, class Otherwise>
Status with_shape(const void* row, int64_t keys, const F& f, const Otherwise& otherwise) {
  const bool even = is_aligned(row, 16) && keys % kPackSize<T> == 0;
  const int64_t needed = keys + (even ? 0 : kPackSize<T> - 1);
  if (needed <= 8 * 32) return f(Shape<32, 8>{});
  if (needed <= kHeld * 32) return f(Shape<32, kHeld>{});
  if (needed <= kHeld * 128) return f(Shape<128, kHeld>{});
  if (needed <= kHeld * 512) return f(Shape<512, kHeld>{});
  return otherwise();
}

template <class Shape, class Kernel, class Arguments>
Status launch_rows(Kernel kernel, const Arguments& args, Stream stream) {
  constexpr int kRows = Shape::kThreads == kWarpSize ? kBlockThreads / kWarpSize : 1;
  return launch(kernel, dim3(static_cast<unsigned>(ceil_div(args.rows, kRows))),
                dim3(Shape::kThreads * kRows), 0, stream, args);
}

}  // namespace

Status scaled_masked_softmax_forward(const ScaledMaskedSoftmaxForward& args, Stream stream) {
  return with_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return with_shape<T>(
        args.scores, args.keys,
        [&](auto shape) {
          using Shape = decltype(shape);
          constexpr int kPacks = Shape::kElements / kPackSize<T>;
          return launch_rows<Shape>(forward_kernel<T, Shape::kThreads, kPacks>, args, stream);
        },
        [&] {
          return launch(forward_long_kernel<T>, dim3(static_cast<unsigned>(args.rows)),
                        dim3(kLongThreads), 0, stream, args);
        });
  });
}

Status scaled_masked_softmax_backward(const ScaledMaskedSoftmaxBackward& args, Stream stream) {
  return with_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return with_shape<T>(
        args.y, args.keys,
        [&](auto shape) {
          using Shape = decltype(shape);
          constexpr int kPacks = Shape::kElements / kPackSize<T>;
          return launch_rows<Shape>(backward_kernel<T, Shape::kThreads, kPacks>, args, stream);
        },
        [&] {
          return launch(backward_long_kernel<T>, dim3(static_cast<unsigned>(args.rows)),
                        dim3(kLongThreads), 0, stream, args);
        });
  });
}

}  // namespace roots
