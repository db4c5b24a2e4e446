// bias_gelu on a GPU. A thread handles one pack (16 bytes); blockIdx.x is a row of x, or in
// backward with a bias a block of rows whose gradients the thread adds up. Forward moves 2 width
// elements a row, backward 3; the exact form is short enough for 16-bit types to stay bound by
// memory.

#include "../ops/bias_gelu.h"
#include "activation.cuh"
#include "column_sum.cuh"
#include "device.cuh"
#include "row_grid.cuh"

namespace roots {
namespace {

// gelu(z) = z Phi(z), and its derivative Phi(z) + z phi(z). By the symmetry of Phi both need only
// the tail on the negative side: gelu(z) = max(z, 0) - |z| Phi(-|z|).
template <class T>
struct Exact {
  static __device__ __forceinline__ float value(float z) {
    const Normal n = normal<T>(z);
    return fmaf(-n.u, n.tail, z < 0.0f ? 0.0f : z);
  }
  static __device__ __forceinline__ float slope(float z) {
    const Normal n = normal<T>(z);
    const float left = fmaf(-n.u, n.density, n.tail);
    return z < 0.0f ? left : 1.0f - left;
  }
};

// Phi(z) ~ (1 + tanh(a)) / 2 = sigmoid(2 a) with a = sqrt(2 / pi) (z + 0.044715 z^3).
template <class T>
struct Tanh {
  static constexpr float kLinear = 1.5957691216f;  // 2 sqrt(2 / pi)
  static constexpr float kCubic = 0.0713548163f;   // 0.044715 times that

  static __device__ __forceinline__ float value(float z) {
    return z * logistic<T>(z * fmaf(kCubic, z * z, kLinear)).below;
  }
  static __device__ __forceinline__ float slope(float z) {
    const Logistic s = logistic<T>(z * fmaf(kCubic, z * z, kLinear));
    const float inner = z * fmaf(3.0f * kCubic, z * z, kLinear);
    return s.below * fmaf(inner, s.above, 1.0f);
  }
};

template <class T, int kSize>
struct Biased {
  float values[kSize];

  __device__ __forceinline__ Biased(const T* x, const void* bias, int64_t i) {
    const auto pack = load_pack<kSize>(x);
    Pack<T, kSize> add{};
    if (bias != nullptr) add = load_pack<kSize>(static_cast<const T*>(bias) + i);
#pragma unroll
    for (int k = 0; k < kSize; ++k) values[k] = to_float(pack.values[k]) + to_float(add.values[k]);
  }
};

template <class T, class Form, int kSize>
__global__ void forward_kernel(BiasGeluForward args) {
  const int64_t i = first_column(kSize), at = blockIdx.x * args.width + i;
  if (i >= args.width) return;
  const Biased<T, kSize> z(static_cast<const T*>(args.x) + at, args.bias, i);
  Pack<T, kSize> y;
#pragma unroll
  for (int k = 0; k < kSize; ++k) y.values[k] = from_float<T>(Form::value(z.values[k]));
  store_pack(static_cast<T*>(args.y) + at, y);
}

template <class T, class Form, int kSize, bool kBias>
__global__ void backward_kernel(BiasGeluBackward args, int64_t rows_of_block) {
  const int64_t i = first_column(kSize);
  if (i >= args.width) return;
  const int64_t first = blockIdx.x * rows_of_block;
  const int64_t end = min(first + rows_of_block, args.rows);
  float sums[kSize] = {};
#pragma unroll 2
  for (int64_t row = first; row < end; ++row) {
    const int64_t at = row * args.width + i;
    const auto dy = load_pack<kSize>(static_cast<const T*>(args.dy) + at);
    const Biased<T, kSize> z(static_cast<const T*>(args.x) + at, args.bias, i);
    Pack<T, kSize> dx;
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      const float gradient = to_float(dy.values[k]) * Form::slope(z.values[k]);
      dx.values[k] = from_float<T>(gradient);
      if (kBias) sums[k] += gradient;
    }
    store_pack(static_cast<T*>(args.dx) + at, dx);
  }
  if (kBias) store_sums(args.partial + blockIdx.x * args.width + i, sums);
}

template <class T, class Form>
Status forward(const BiasGeluForward& args, Stream stream) {
  constexpr int kWide = kPackSize<T>;
  const bool wide = args.width % kWide == 0 && is_aligned(args.x, 16) && is_aligned(args.y, 16) &&
                    is_aligned(args.bias, 16);
  return wide ? launch(forward_kernel<T, Form, kWide>, row_grid(args.rows, args.width, kWide),
                       dim3(kRowThreads), 0, stream, args)
              : launch(forward_kernel<T, Form, 1>, row_grid(args.rows, args.width, 1),
                       dim3(kRowThreads), 0, stream, args);
}

template <class T, class Form, int kSize>
Status launch_backward(const BiasGeluBackward& args, Stream stream) {
  if (args.bias == nullptr) {
    return launch(backward_kernel<T, Form, kSize, false>, row_grid(args.rows, args.width, kSize),
                  dim3(kRowThreads), 0, stream, args, int64_t{1});
  }
  const dim3 grid = row_grid(num_sum_blocks(args.rows), args.width, kSize);
  const Status status = launch(backward_kernel<T, Form, kSize, true>, grid, dim3(kRowThreads), 0,
                               stream, args, sum_block_rows(args.rows));
  if (status != 0) return status;
  return add_partial_sums(args.partial, args.dbias, args.rows, args.width, stream);
}

template <class T, class Form>
Status backward(const BiasGeluBackward& args, Stream stream) {
  const bool wide = args.width % kPackSize<T> == 0 && is_aligned(args.dy, 16) &&
                    is_aligned(args.x, 16) && is_aligned(args.dx, 16) &&
                    is_aligned(args.bias, 16) && is_aligned(args.partial, 16);
  return wide ? launch_backward<T, Form, kPackSize<T>>(args, stream)
              : launch_backward<T, Form, 1>(args, stream);
}

}  // namespace

Status bias_gelu_forward(const BiasGeluForward& args, Stream stream) {
  return with_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return args.tanh ? forward<T, Tanh<T>>(args, stream) : forward<T, Exact<T>>(args, stream);
  });
}

Status bias_gelu_backward(const BiasGeluBackward& args, Stream stream) {
  return with_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return args.tanh ? backward<T, Tanh<T>>(args, stream) : backward<T, Exact<T>>(args, stream);
  });
}

}  // namespace roots
