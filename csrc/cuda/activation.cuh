// Logistic function and normal distribution for the activations of a tensor of type T, with
// relative errors of 1e-7 for float32 and of 4e-5 for 16-bit types, whose own rounding is 2e-4 at
// least; there exp and 1/x are the processor's approximations. NaN of NaN, finite of infinities.
#pragma once

#include <type_traits>

#include "device.cuh"

namespace roots {

template <class T>
__device__ __forceinline__ float exponential(float x) {
  return std::is_same<T, float>::value ? expf(x) : __expf(x);
}

template <class T>
__device__ __forceinline__ float reciprocal(float x) {
  return std::is_same<T, float>::value ? 1.0f / x : __fdividef(1.0f, x);
}

struct Logistic {
  float below;  // sigmoid(x)
  float above;  // 1 - sigmoid(x), without the cancellation of that difference
};

template <class T>
__device__ __forceinline__ Logistic logistic(float x) {
  const float e = exponential<T>(-fabsf(x)), larger = reciprocal<T>(1.0f + e), smaller = e * larger;
  return x > 0.0f ? Logistic{larger, smaller} : Logistic{smaller, larger};
}

// The normal distribution at |z| = u, which is at most 13: beyond, Phi is below the smallest float.
struct Normal {
  float u;
  float density;  // phi(u)
  float tail;     // Phi(-u)
};

template <int kTerms>
__device__ __forceinline__ float horner(const float (&coefficients)[kTerms], float x) {
  float value = coefficients[kTerms - 1];
#pragma unroll
  for (int k = kTerms - 2; k >= 0; --k) value = fmaf(value, x, coefficients[k]);
  return value;
}

// With t = 1 / (1 + c u), Phi(-u) = exp(-u^2 / 2) q(t): the form of Abramowitz and Stegun 26.2.17,
// refitted; absolute error 5e-8, for 16-bit types 2e-5; relative error 6e-7 and 4e-5.
template <class T>
__device__ __forceinline__ Normal normal(float z) {
  constexpr bool kExact = std::is_same<T, float>::value;
  const float u = fabsf(z) > 13.0f ? 13.0f : fabsf(z);
  const float e = exponential<T>(-0.5f * u * u);
  const float t = reciprocal<T>(fmaf(kExact ? 0.23f : 0.38f, u, 1.0f));
  const float exact[] = {0.091911495f, 0.089063607f, 0.10670500f, -0.0030345418f,
                         0.25845915f,  -0.24074030f, 0.27242431f, -0.074788734f};
  const float short_form[] = {0.15122530f, 0.15782799f, 0.091984458f, 0.18887028f, -0.089925513f};
  const float q = kExact ? horner(exact, t) : horner(short_form, t);
  return {u, 0.39894228f * e, q * t * e};
}

}  // namespace roots
