// Exponential, logistic function and normal distribution for the activations of a tensor of type T:
// inline, so that no register is saved around a call, without branches, and with relative errors of
// 1e-7 for float32 and of 1e-5 for 16-bit types, whose own rounding is 2e-4 at least.
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

// 1 / x of a finite x. For 16-bit types one step of Newton from the processor's guess of 12 or 14
// bits, several times faster than a division.
template <class T>
inline Vec reciprocal(const Vec& x) {
  if constexpr (std::is_same_v<T, float>) {
    return Vec(1.0f) / x;
  } else {
#if defined(CPU_CAPABILITY_AVX512)
    const Vec guess = _mm512_rcp14_ps(x);
#else
    const Vec guess = _mm256_rcp_ps(x);
#endif
    return at::vec::fmadd(guess, at::vec::fnmadd(guess, x, Vec(1.0f)), guess);
  }
}

// e^x for |x| <= 87. x = n ln 2 + r, and e^r is a minimax polynomial for |r| <= ln 2 / 2, of error
// 3e-9, for 16-bit types 6e-6. n is rounded by adding 1.5 * 2^23, which leaves it in the low bits,
// from where it is added to the exponent of e^r. Of a NaN it is a number; callers multiply by x.
template <class T>
inline Vec exponential(const Vec& x) {
  const Vec shifted = at::vec::fmadd(x, Vec(1.4426950409f), Vec(12582912.0f));
  const Vec n = shifted - Vec(12582912.0f);
  Vec p;
  if constexpr (std::is_same_v<T, float>) {
    constexpr float kTerms[] = {1.0f,         1.0f,          0.49999994f,  0.16666518f,
                                0.041668411f, 0.0083689420f, 0.0013814145f};
    // ln 2 in two parts, of which the first has nine zero bits at its end.
    const Vec r = at::vec::fnmadd(n, Vec(0.693145751953125f), x);
    p = horner(kTerms, at::vec::fnmadd(n, Vec(1.42860677e-6f), r));
  } else {
    constexpr float kTerms[] = {1.0f, 1.0f, 0.50005186f, 0.16754082f, 0.041274864f};
    p = horner(kTerms, at::vec::fnmadd(n, Vec(0.69314718f), x));
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
// refitted; absolute error 5e-8, for 16-bit types 2e-5; relative error 6e-7 and 4e-5.
template <class T>
inline Normal normal(const Vec& z) {
  constexpr bool kExact = std::is_same_v<T, float>;
  const Vec u = at::vec::clamp_max(z.abs(), Vec(13.0f));
  const Vec e = exponential<T>(u * u * Vec(-0.5f));
  const Vec t = reciprocal<T>(at::vec::fmadd(u, Vec(kExact ? 0.23f : 0.38f), Vec(1.0f)));
  Vec q;
  if constexpr (kExact) {
    constexpr float kTerms[] = {0.091911495f, 0.089063607f, 0.10670500f, -0.0030345418f,
                                0.25845915f,  -0.24074030f, 0.27242431f, -0.074788734f};
    q = horner(kTerms, t);
  } else {
    constexpr float kTerms[] = {0.15122530f, 0.15782799f, 0.091984458f, 0.18887028f, -0.089925513f};
    q = horner(kTerms, t);
  }
  return {u, e * Vec(0.39894228f), q * t * e};
}

}  // namespace
}  // namespace ROOTS_CAPABILITY
}  // namespace roots
