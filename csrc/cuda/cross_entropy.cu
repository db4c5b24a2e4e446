// cross_entropy on a GPU: a block for every row. The statistics read it once, with a running
// maximum in every thread; the gradient reads and writes it once. Both are bound by memory.

#include "../ops/cross_entropy.h"
#include "device.cuh"
#include "row.cuh"

namespace roots {
namespace {

constexpr int kMaxThreads = 512;

template <class T>
__global__ void __launch_bounds__(kMaxThreads) statistics_kernel(SoftmaxStatistics args) {
  ROOTS_STATIC_SHARED(float[2 * kWarpSize], scratch);
  const int64_t row = blockIdx.x;
  const T* logits = static_cast<const T*>(args.logits) + row * args.stride;
  Softmax seen{-INFINITY, 0.0f};
  float total = 0.0f;
  const auto raise_maximum = [&](float value) {
    if (value > seen.maximum) {
      seen.sum *= exp_for<T>(seen.maximum - value);
      seen.maximum = value;
    }
  };
  for_row(
      logits, args.width,
      [&](const auto& pack, int64_t) {
        constexpr int kSize = kPackSize<T>;
        float largest = -INFINITY;
#pragma unroll
        for (int k = 0; k < kSize; ++k) largest = fmaxf(largest, to_float(pack.values[k]));
        raise_maximum(largest);
        const float shift = shift_of(seen.maximum);
#pragma unroll
        for (int k = 0; k < kSize; ++k) {
          const float value = to_float(pack.values[k]);
          total += value;
          seen.sum += exp_for<T>(value - shift);
        }
      },
      [&](T value, int64_t) {
        raise_maximum(to_float(value));
        total += to_float(value);
        seen.sum += exp_for<T>(to_float(value) - shift_of(seen.maximum));
      });
  seen = block_merge(seen, scratch);
  total = block_sum(total, scratch);
  if (threadIdx.x != 0) return;
  const int64_t column = args.labels[row] - args.first;
  args.row_max[row] = seen.maximum;
  args.sum_exp[row] = seen.sum;
  args.picked[row] = column >= 0 && column < args.width ? to_float(logits[column]) : 0.0f;
  args.sum_logits[row] = total;
}

// gradient = factor * exp(logit - shift) - share, but at the label.
template <class T>
__global__ void __launch_bounds__(kMaxThreads, 2) gradient_kernel(SoftmaxGradient args) {
  constexpr int kSize = kPackSize<T>;
  const int64_t row = blockIdx.x;
  const T* logits = static_cast<const T*>(args.logits) + row * args.stride;
  T* gradient = static_cast<T*>(args.gradient) + row * args.gradient_stride;
  const bool wide = misalignment(logits) == misalignment(gradient);
  const auto write_pack = [&](int64_t column, const Pack<T, kSize>& pack) {
    if (wide) {
      store_pack(gradient + column, pack);
    } else {
#pragma unroll
      for (int k = 0; k < kSize; ++k) gradient[column + k] = pack.values[k];
    }
  };
  const float weight = args.row_weights[row];
  if (weight == 0.0f) {
    for_row(
        logits, args.width,
        [&](const auto&, int64_t column) { write_pack(column, Pack<T, kSize>{}); },
        [&](T, int64_t column) { gradient[column] = from_float<T>(0.0f); });
    return;
  }
  const float shift = args.row_max[row], log_sum = logf(args.sum_exp[row]);
  const float z_slope = 2.0f * args.z_loss * (shift + log_sum);
  const float factor = weight * (1.0f + z_slope) / args.sum_exp[row];
  const float smoothing = args.label_smoothing / static_cast<float>(args.vocab_size);
  const float share = weight * smoothing;
  const auto slope = [&](T logit) {
    return from_float<T>(factor * exp_for<T>(to_float(logit) - shift) - share);
  };
  // Thread 0 writes the label's entry last; it reads the logit before anybody writes over it.
  const int64_t label = args.labels[row] - args.first;
  const bool writes_label = threadIdx.x == 0 && label >= 0 && label < args.width;
  const float label_logit = writes_label ? to_float(logits[label]) : 0.0f;
  __syncthreads();
  for_row(
      logits, args.width,
      [&](const auto& pack, int64_t column) {
        Pack<T, kSize> result;
#pragma unroll
        for (int k = 0; k < kSize; ++k) result.values[k] = slope(pack.values[k]);
        write_pack(column, result);
      },
      [&](T logit, int64_t column) { gradient[column] = slope(logit); });
  __syncthreads();
  if (!writes_label) return;
  // p - 1 = expm1(logit - lse), which keeps its digits where p is near 1.
  const float minus_one = expm1f(label_logit - shift - log_sum);
  gradient[label] = from_float<T>(
      weight * (minus_one + z_slope * (1.0f + minus_one) + (args.label_smoothing - smoothing)));
}

// Enough threads for four packs each, and no more than a row has work for.
template <class T>
dim3 threads_for(int64_t width) {
  const int64_t wanted = ceil_div(width, 4 * kPackSize<T>);
  return dim3(wanted <= 64 ? 64 : wanted <= 256 ? 256 : kMaxThreads);
}

}  // namespace

Status softmax_statistics(const SoftmaxStatistics& args, Stream stream) {
  return with_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return launch(statistics_kernel<T>, dim3(static_cast<unsigned>(args.rows)),
                  threads_for<T>(args.width), 0, stream, args);
  });
}

Status softmax_gradient(const SoftmaxGradient& args, Stream stream) {
  return with_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return launch(gradient_kernel<T>, dim3(static_cast<unsigned>(args.rows)),
                  threads_for<T>(args.width), 0, stream, args);
  });
}

}  // namespace roots
