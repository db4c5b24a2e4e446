// The sums of vectors, four at a time: fewer instructions than one by one.
#pragma once

#include "attention_tiles.h"

namespace roots {
namespace ROOTS_CAPABILITY {

inline __m256 halves(const Vec& value) {
#if defined(CPU_CAPABILITY_AVX512)
  return _mm256_add_ps(_mm512_castps512_ps256(value), _mm512_extractf32x8_ps(value, 1));
#else
  return value;
#endif
}

// The sums of four vectors.
inline __m128 four_sums(const Vec& a, const Vec& b, const Vec& c, const Vec& d) {
  const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(halves(a), halves(b)),
                                      _mm256_hadd_ps(halves(c), halves(d)));
  return _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
}

}  // namespace ROOTS_CAPABILITY
}  // namespace roots
