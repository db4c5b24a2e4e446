// cross_entropy on a CPU: threads over rows; a row is read once forward, and read and written once
// backward. Nothing is stored in float32 but four numbers a row.

#include "../ops/cross_entropy.h"

#include <cmath>
#include <limits>

#include "cpu.h"
#include "exponential.h"

namespace roots {
namespace ROOTS_CAPABILITY {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Elements whose maximum is taken before their exponentials: they stay in the first-level cache.
constexpr int64_t kChunk = 4096;

struct MaximumAndSum {
  float maximum, sum;
};

template <class T>
inline MaximumAndSum maximum_and_sum(const T* x, int64_t size) {
  Pair largest{Vec(-kInfinity), Vec(-kInfinity)}, total{Vec(0.0f), Vec(0.0f)};
  int64_t i = 0;
  for (; i + kBlock <= size; i += kBlock) {
    const Pair value = load(x + i, Whole{});
    largest = {at::vec::maximum(largest.low, value.low),
               at::vec::maximum(largest.high, value.high)};
    total = {total.low + value.low, total.high + value.high};
  }
  MaximumAndSum result{maximum(at::vec::maximum(largest.low, largest.high)),
                       sum(total.low + total.high)};
  for (; i < size; ++i) {
    const float value = static_cast<float>(x[i]);
    // A NaN stays.
    if (!(value <= result.maximum)) result.maximum = value;
    result.sum += value;
  }
  return result;
}

template <class T>
inline float sum_exp(const T* x, int64_t size, float shift) {
  const Vec shifts(shift);
  Pair total{Vec(0.0f), Vec(0.0f)};
  int64_t i = 0;
  for (; i + kBlock <= size; i += kBlock) {
    const Pair value = load(x + i, Whole{});
    total = {total.low + exp_of_nonpositive(value.low - shifts),
             total.high + exp_of_nonpositive(value.high - shifts)};
  }
  float result = sum(total.low + total.high);
  for (; i < size; ++i) result += std::exp(static_cast<float>(x[i]) - shift);
  return result;
}

// Before the first chunk the maximum is -infinity; a row of nothing else has no exponentials.
inline float shift_of(float maximum) { return maximum == -kInfinity ? 0.0f : maximum; }

template <class T>
void statistics_of_row(const SoftmaxStatistics& args, int64_t row) {
  const T* x = static_cast<const T*>(args.logits) + row * args.stride;
  float largest = -kInfinity, exponentials = 0.0f, total = 0.0f;
  for (int64_t start = 0; start < args.width; start += kChunk) {
    const int64_t size = std::min(kChunk, args.width - start);
    const MaximumAndSum chunk = maximum_and_sum(x + start, size);
    total += chunk.sum;
    if (!(chunk.maximum <= largest)) {
      exponentials *= std::exp(largest - shift_of(chunk.maximum));
      largest = chunk.maximum;
    }
    if (largest != -kInfinity) exponentials += sum_exp(x + start, size, largest);
  }
  const int64_t column = args.labels[row] - args.first;
  args.row_max[row] = largest;
  args.sum_exp[row] = exponentials;
  args.picked[row] = column >= 0 && column < args.width ? static_cast<float>(x[column]) : 0.0f;
  args.sum_logits[row] = total;
}

// gradient = factor * exp(logit - shift) + offset, but at the label.
template <class T>
void gradient_of_row(const SoftmaxGradient& args, int64_t row) {
  const T* x = static_cast<const T*>(args.logits) + row * args.stride;
  T* gradient = static_cast<T*>(args.gradient) + row * args.gradient_stride;
  const float weight = args.row_weights[row];
  if (weight == 0.0f) {
    std::fill_n(gradient, args.width, T(0.0f));
    return;
  }
  const float shift = args.row_max[row], log_sum = std::log(args.sum_exp[row]);
  const float z_slope = 2.0f * args.z_loss * (shift + log_sum);
  const float factor = weight * (1.0f + z_slope) / args.sum_exp[row];
  const float share = args.label_smoothing / static_cast<float>(args.vocab_size);
  const int64_t column = args.labels[row] - args.first;
  const bool inside = column >= 0 && column < args.width;
  float at_label = 0.0f;
  if (inside) {
    // p - 1 = expm1(logit - lse), which keeps its digits where p is near 1.
    const float minus_one = std::expm1(static_cast<float>(x[column]) - shift - log_sum);
    at_label = weight * (minus_one + z_slope * (1.0f + minus_one) + (args.label_smoothing - share));
  }
  const Vec shifts(shift), factors(factor), offsets(-weight * share);
  for_blocks(args.width, [&](int64_t i, auto count) {
    const Pair value = load(x + i, count);
    store(gradient + i,
          Pair{at::vec::fmadd(factors, exp_of_nonpositive(value.low - shifts), offsets),
               at::vec::fmadd(factors, exp_of_nonpositive(value.high - shifts), offsets)},
          count);
  });
  if (inside) gradient[column] = static_cast<T>(at_label);
}

}  // namespace

Status softmax_statistics(const SoftmaxStatistics& args, Stream) {
  with_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(args.rows, row_grain(args.width), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) statistics_of_row<T>(args, row);
    });
  });
  return 0;
}

Status softmax_gradient(const SoftmaxGradient& args, Stream) {
  with_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(args.rows, row_grain(args.width), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) gradient_of_row<T>(args, row);
    });
  });
  return 0;
}

}  // namespace ROOTS_CAPABILITY
}  // namespace roots

ROOTS_CPU_LAUNCHER(softmax_statistics, SoftmaxStatistics)
ROOTS_CPU_LAUNCHER(softmax_gradient, SoftmaxGradient)
