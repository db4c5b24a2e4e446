// e^x of float vectors for softmax: x <= 0, where errors are measured against a largest value of 1.
#pragma once

#include "cpu.h"

namespace roots {
namespace ROOTS_CAPABILITY {

// e^x for x <= 0 (or a rounding error above) within 2 units in the last place; 0 below -87. A NaN
// gives a NaN, or with AVX2 anything if its payload is unusual: the row's largest value tells.
//
// x = n ln 2 + r with |r| <= ln 2 / 2; adding 1.5 * 2^23 rounds to the integer n and leaves it in
// the low bits. e^r = 1 + r + r^2 p(r) by a minimax polynomial of degree 6.
inline Vec exp_of_nonpositive(const Vec& x) {
  const Vec magic(12582912.0f);
  const Vec shifted = at::vec::fmadd(x, Vec(1.44269504f), magic);
  const Vec n = shifted - magic;
  Vec r = at::vec::fnmadd(n, Vec(0.693145752f), x);
  r = at::vec::fnmadd(n, Vec(1.42860677e-6f), r);
  Vec p = at::vec::fmadd(Vec(1.3814145e-3f), r, Vec(8.3689420e-3f));
  p = at::vec::fmadd(p, r, Vec(4.1668411e-2f));
  p = at::vec::fmadd(p, r, Vec(1.6666518e-1f));
  p = at::vec::fmadd(p, r, Vec(4.9999994e-1f));
  p = at::vec::fmadd(p, r * r, r) + Vec(1.0f);
#if defined(ROOTS_CAPABILITY_AVX512)
  const __mmask16 counts = _mm512_cmp_ps_mask(x, Vec(-87.0f), _CMP_NLT_UQ);
  return _mm512_maskz_scalef_ps(counts, p, n);
#else
  const __m256 counts = _mm256_cmp_ps(x, Vec(-87.0f), _CMP_NLT_UQ);
  const __m256i power = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
  const __m256i scaled = _mm256_add_epi32(_mm256_castps_si256(p), power);
  return _mm256_and_ps(counts, _mm256_castsi256_ps(scaled));
#endif
}

}  // namespace ROOTS_CAPABILITY
}  // namespace roots
