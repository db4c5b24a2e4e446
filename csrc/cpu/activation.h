// Exponential, logistic function and normal distribution for the activations of a tensor of type T:
// inline, so that no register is saved around a call, without branches, and with relative errors of
// 1e-7 for float32, of 1e-5 for float16 and of 1e-4 for bfloat16, whose own rounding reaches 5e-4
// and 4e-3.
#pragma once

#include "cpu.h"

namespace roots {
namespace ROOTS_CAPABILITY {
namespace {

template <size_t kTerms>
inline Vec horner(const float (&coefficients)[kTerms], const Vec& x) {
  Vec value(coefficients[kTerms - 1]);
  for (size_t k = kTerms - 1; k-- > 0;) value = at::vec::fmadd(value, x, Vec(coefficients[k]));
  return value;
}

template <class T>
constexpr bool kIsFloat = std::is_same_v<T, float>;
template <class T>
constexpr bool kIsBFloat16 = std::is_same_v<T, c10::BFloat16>;

// 1 / x of a finite x. For 16-bit types the processor's guess of 12 or 14 bits and a step of Newton,
// several times faster than a division; to bfloat16 14 bits are enough without the step.
template <class T>
inline Vec reciprocal(const Vec& x) {
  if constexpr (kIsFloat<T>) {
    return Vec(1.0f) / x;
  } else {
#if defined(CPU_CAPABILITY_AVX512)
    const Vec guess = _mm512_rcp14_ps(x);
    if constexpr (kIsBFloat16<T>) return guess;
#else
    const Vec guess = _mm256_rcp_ps(x);
#endif
    return at::vec::fmadd(guess, at::vec::fnmadd(guess, x, Vec(1.0f)), guess);
  }
}

// e^(kScale x) for |kScale x| <= 87 and kScale 1 or -0.5. The exponent is n ln 2 + r, and e^r is a
// minimax polynomial for |r| <= ln 2 / 2, of error 3e-9; for 16-bit types 2^f with f = r / ln 2, of
// error 3e-6 for float16 and 8e-5 for bfloat16. n is rounded by adding 1.5 * 2^23, which leaves it
// in the low bits, from where it is added to the exponent of e^r. Of a NaN it is a number; callers
// multiply by x.
template <class T, int kHalves = 2>
inline Vec exponential(const Vec& x) {
  constexpr float kScale = 0.5f * kHalves;
  const Vec log2(1.4426950409f * kScale);
  const Vec shifted = at::vec::fmadd(x, log2, Vec(12582912.0f));
  const Vec n = shifted - Vec(12582912.0f);
  Vec p;
  if constexpr (kIsFloat<T>) {
    constexpr float kTerms[] = {1.0f,         1.0f,          0.49999994f,  0.16666518f,
                                0.041668411f, 0.0083689420f, 0.0013814145f};
    // ln 2 in two parts, of which the first has nine zero bits at its end.
    const Vec r = at::vec::fnmadd(n, Vec(0.693145751953125f), kHalves == 2 ? x : x * Vec(kScale));
    p = horner(kTerms, at::vec::fnmadd(n, Vec(1.42860677e-6f), r));
  } else if constexpr (kIsBFloat16<T>) {
    constexpr float kTerms[] = {0.99992807f, 0.69326099f, 0.2426112f, 0.0551717f};
    p = horner(kTerms, at::vec::fmsub(x, log2, n));
  } else {
    constexpr float kTerms[] = {0.99999926f, 0.69312181f, 0.24024745f, 0.05591787f, 0.0095701f};
    p = horner(kTerms, at::vec::fmsub(x, log2, n));
  }
  using Int = at::vec::Vectorized<int32_t>;
  const Int exponent = at::vec::cast<int32_t, float>(shifted) << Int(23);
  return at::vec::cast<float, int32_t>(at::vec::cast<int32_t, float>(p) + exponent);
}

struct Logistic {
  Vec below;  // sigmoid(x) = exp(x) / (1 + exp(x))
  Vec above;  // 1 - sigmoid(x), without the cancellation of that difference
};

// x beyond +-87 counts as that.
template <class T>
inline Logistic logistic(const Vec& x) {
  const Vec e = exponential<T>(at::vec::clamp(x, Vec(-87.0f), Vec(87.0f)));
  const Vec above = reciprocal<T>(Vec(1.0f) + e);
  return {e * above, above};
}

// The normal distribution at |z| = u, which is at most 13: beyond, Phi is below the smallest float.
struct Normal {
  Vec u;
  Vec density;  // phi(u)
  Vec tail;     // Phi(-u)
};

// With t = 1 / (1 + c u), Phi(-u) = exp(-u^2 / 2) q(t): the form of Abramowitz and Stegun 26.2.17,
// refitted; absolute error 5e-8, for float16 2e-5; relative error 6e-7, 4e-5, for bfloat16 2e-4.
template <class T>
inline Normal normal(const Vec& z) {
  constexpr float c = kIsFloat<T> ? 0.23f : kIsBFloat16<T> ? 0.47f : 0.38f;
  const Vec u = at::vec::clamp_max(z.abs(), Vec(13.0f));
  const Vec e = exponential<T, -1>(u * u);
  const Vec t = reciprocal<T>(at::vec::fmadd(u, Vec(c), Vec(1.0f)));
  Vec q;
  if constexpr (kIsFloat<T>) {
    constexpr float kTerms[] = {0.091911495f, 0.089063607f, 0.10670500f, -0.0030345418f,
                                0.25845915f,  -0.24074030f, 0.27242431f, -0.074788734f};
    q = horner(kTerms, t) * t;
  } else if constexpr (kIsBFloat16<T>) {
    constexpr float kTerms[] = {-0.00042033318f, 0.19498497f, 0.13833225f, 0.29348284f,
                                -0.12642492f};
    q = horner(kTerms, t);
  } else {
    constexpr float kTerms[] = {0.15122530f, 0.15782799f, 0.091984458f, 0.18887028f, -0.089925513f};
    q = horner(kTerms, t) * t;
  }
  return {u, e * Vec(0.39894228f), q * e};
}

}  // namespace
}  // namespace ROOTS_CAPABILITY
}  // namespace roots
