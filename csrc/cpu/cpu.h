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

#if defined(CPU_CAPABILITY_AVX512)
// With fewer instructions than at::vec has for them; both kinds of 16-bit rounding are equal.
inline Vec widen_bfloat16(const c10::BFloat16* source) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// To the nearest, ties to even, in the upper 16 bits of every float; NaN stays NaN.
inline __m512i round_bfloat16(const Vec& value) {
  const __m512i bits = _mm512_castps_si512(value), ones = _mm512_set1_epi32(-1);
  const __mmask16 ordered = _mm512_cmp_ps_mask(value, value, _CMP_ORD_Q);
  const __mmask16 odd = _mm512_mask_test_epi32_mask(ordered, bits, _mm512_set1_epi32(1 << 16));
  const __m512i below = _mm512_mask_add_epi32(ones, ordered, bits, _mm512_set1_epi32(0x7fff));
  return _mm512_mask_sub_epi32(below, odd, below, ones);
}

inline __m512i narrow_bfloat16(const Pair& value) {
  alignas(64) static constexpr uint16_t kUpper[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                                      23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                                      45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  return _mm512_permutex2var_epi16(round_bfloat16(value.low), _mm512_load_si512(kUpper),
                                   round_bfloat16(value.high));
}
#endif

// The count of a whole block, so that what is written for any count is fast for most of them.
struct Whole {};

template <class T>
inline Pair load(const T* source, Whole) {
  if constexpr (std::is_same_v<T, float>) {
    return {Vec::loadu(source), Vec::loadu(source + kWidth)};
  } else {
#if defined(CPU_CAPABILITY_AVX512)
    if constexpr (std::is_same_v<T, c10::BFloat16>) {
      return {widen_bfloat16(source), widen_bfloat16(source + kWidth)};
    }
#endif
    auto [low, high] = at::vec::convert_to_float<T>(at::vec::Vectorized<T>::loadu(source));
    return {low, high};
  }
}

template <class T>
inline void store(T* target, const Pair& value, Whole) {
  if constexpr (std::is_same_v<T, float>) {
    value.low.store(target);
    value.high.store(target + kWidth);
  } else {
#if defined(CPU_CAPABILITY_AVX512)
    if constexpr (std::is_same_v<T, c10::BFloat16>) {
      return _mm512_storeu_si512(target, narrow_bfloat16(value));
    }
#endif
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

// f(i, count) for the blocks i, i + 1, ... i + count - 1 of [0, size); count is Whole{} or int64_t.
template <class F>
inline void for_blocks(int64_t size, const F& f) {
  int64_t i = 0;
  for (; i + kBlock <= size; i += kBlock) f(i, Whole{});
  if (i < size) f(i, size - i);
}

inline Pair operator+(const Pair& a, const Pair& b) { return {a.low + b.low, a.high + b.high}; }

inline float sum(const Vec& value) {
  return at::vec::vec_reduce_all<float>([](Vec a, Vec b) { return a + b; }, value);
}

inline float maximum(const Vec& value) {
  return at::vec::vec_reduce_all<float>([](Vec a, Vec b) { return at::vec::maximum(a, b); }, value);
}

}  // namespace ROOTS_CAPABILITY
}  // namespace roots
