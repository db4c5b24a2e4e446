// What the CPU kernels share: float vectors, loads and stores of every dtype, threads, reductions.
//
// Included inside a unit that is compiled once for each instruction set; everything lives in
// namespace roots::avx2 or roots::avx512, so that no inline function of one is linked into the
// other.
#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <cstdint>

#include "../common.h"

#if !defined(ROOTS_CAPABILITY)
#error "compile with -DROOTS_CAPABILITY=avx2 or avx512"
#endif

// Ends a kernel file: the entry that chooses the instruction set when it is called. Written once,
// by the AVX2 unit.
#if defined(ROOTS_CAPABILITY_AVX2)
#define ROOTS_CPU_LAUNCHER(name, Arguments)                                                        \
  namespace roots {                                                                                \
  Status name(const Arguments& arguments, Stream stream) {                                         \
    return ROOTS_CPU_HAS_AVX512 ? avx512::name(arguments, stream) : avx2::name(arguments, stream); \
  }                                                                                                \
  }
#else
#define ROOTS_CPU_LAUNCHER(name, Arguments)
#endif
#define ROOTS_CPU_HAS_AVX512                                                  \
  (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && \
   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))

namespace roots {
namespace ROOTS_CAPABILITY {

using Vec = at::vec::Vectorized<float>;
constexpr int64_t kWidth = Vec::size();

// Elements that a thread should have at least, so that starting it pays.
constexpr int64_t kGrainElements = 1 << 15;

template <class T>
struct Tag {
  using type = T;
};

// with_dtype(dtype, [&](auto tag) { using T = typename decltype(tag)::type; ... })
template <class F>
inline void with_dtype(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(Tag<float>{});
    case DType::kFloat16:
      return f(Tag<c10::Half>{});
    case DType::kBFloat16:
      return f(Tag<c10::BFloat16>{});
  }
}

// f(begin, end) over [0, count) on torch's threads, at least `grain` items each.
template <class F>
inline void parallel_for(int64_t count, int64_t grain, const F& f) {
  if (count <= 0) return;
  const auto call = [](int64_t begin, int64_t end, void* context) {
    (*static_cast<const F*>(context))(begin, end);
  };
  torch_parallel_for(0, count, std::max<int64_t>(grain, 1), call,
                     const_cast<void*>(static_cast<const void*>(&f)));
}

// Rows of `size` elements a thread should have at least.
inline int64_t row_grain(int64_t size) {
  return std::max<int64_t>(1, kGrainElements / std::max<int64_t>(size, 1));
}

// Two float vectors hold what one vector of a 16-bit type holds; kBlock elements are handled at
// once for every dtype, so that kernels are written once.
constexpr int64_t kBlock = 2 * kWidth;

struct Pair {
  Vec low, high;
};

template <class T>
inline Pair load(const T* source) {
  if constexpr (std::is_same_v<T, float>) {
    return {Vec::loadu(source), Vec::loadu(source + kWidth)};
  } else {
    auto [low, high] = at::vec::convert_to_float<T>(at::vec::Vectorized<T>::loadu(source));
    return {low, high};
  }
}

template <class T>
inline void store(T* target, const Pair& value) {
  if constexpr (std::is_same_v<T, float>) {
    value.low.store(target);
    value.high.store(target + kWidth);
  } else {
    at::vec::convert_from_float<T>(value.low, value.high).store(target);
  }
}

// The first `count` < kBlock elements; the others are zero, or are not written.
template <class T>
inline Pair load(const T* source, int64_t count) {
  if constexpr (std::is_same_v<T, float>) {
    return {Vec::loadu(source, std::min(count, kWidth)),
            count > kWidth ? Vec::loadu(source + kWidth, count - kWidth) : Vec(0.0f)};
  } else {
    auto [low, high] = at::vec::convert_to_float<T>(at::vec::Vectorized<T>::loadu(source, count));
    return {low, high};
  }
}

template <class T>
inline void store(T* target, const Pair& value, int64_t count) {
  if constexpr (std::is_same_v<T, float>) {
    value.low.store(target, std::min(count, kWidth));
    if (count > kWidth) value.high.store(target + kWidth, count - kWidth);
  } else {
    at::vec::convert_from_float<T>(value.low, value.high).store(target, count);
  }
}

inline float sum(const Vec& value) {
  return at::vec::vec_reduce_all<float>([](Vec a, Vec b) { return a + b; }, value);
}

inline float maximum(const Vec& value) {
  return at::vec::vec_reduce_all<float>([](Vec a, Vec b) { return at::vec::maximum(a, b); }, value);
}

}  // namespace ROOTS_CAPABILITY
}  // namespace roots
