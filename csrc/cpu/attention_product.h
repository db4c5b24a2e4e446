// Products of small fp32 tiles, and 2^x: what the time of attention on a CPU goes to.
//
// A tile of kRows x kVectors vectors of the result stays in registers while one row of the right
// side is loaded and kRows elements of the left side are broadcast at every step: 24 (AVX-512) or
// 12 (AVX2) multiply-adds on 10 or 8 loads. Measured on one core of an EPYC (Zen 4) with 64 steps:
// 114 and 99 GFLOP/s, of a peak of about 118.
#pragma once

#include <array>
#include <memory>

#include "cpu.h"

namespace roots {
namespace ROOTS_CAPABILITY {

#if defined(CPU_CAPABILITY_AVX512)
constexpr int64_t kTileVectors = 4;
#else
constexpr int64_t kTileVectors = 2;
#endif
constexpr int64_t kTileRows = 6;
constexpr int64_t kTileColumns = kTileVectors * kWidth;

inline int64_t round_up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

// Floats that start at a cache line, not initialised.
class Floats {
 public:
  explicit Floats(int64_t count)
      : data_(static_cast<float*>(
            ::operator new(sizeof(float) * std::max<int64_t>(count, 1), std::align_val_t{64}))) {}
  float* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(float* data) const { ::operator delete(data, std::align_val_t{64}); }
  };
  std::unique_ptr<float, Free> data_;
};

// c[i, j] = decay[i] c[i, j] + sum_k a[i * row + k * step] b[k * b_step + j], for `rows` rows,
// `vectors` vectors of columns and k < count. decay null: 1 if `add`, else 0 and c is not read.
struct Product {
  const float* a;
  int64_t row;
  int64_t step;
  const float* b;
  int64_t b_step;
  float* c;
  int64_t c_row;
  int64_t count;
  bool add = false;
  const float* decay = nullptr;
};

template <int kRows, int kVectors>
void product_tile(const Product& p, int64_t column) {
  Vec sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) sum[i][j] = Vec(0.0f);
  }
  const float* a = p.a;
  const float* b = p.b + column;
  const int64_t row = p.row, step = p.step, b_step = p.b_step;
  for (int64_t k = 0; k < p.count; ++k, a += step, b += b_step) {
    Vec right[kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) right[j] = Vec::loadu(b + j * kWidth);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const Vec left(a[i * row]);
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) sum[i][j] = at::vec::fmadd(left, right[j], sum[i][j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
    float* c = p.c + i * p.c_row + column;
    const Vec decay(p.decay != nullptr ? p.decay[i] : 1.0f);
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      const Vec old = p.add ? Vec::loadu(c + j * kWidth) : Vec(0.0f);
      (p.add ? at::vec::fmadd(decay, old, sum[i][j]) : sum[i][j]).store(c + j * kWidth);
    }
  }
}

template <int kRows>
void product_rows(const Product& p, int64_t vectors) {
  int64_t j = 0;
  for (; j + kTileVectors <= vectors; j += kTileVectors) {
    product_tile<kRows, kTileVectors>(p, j * kWidth);
  }
  switch (vectors - j) {
    case 1:
      return product_tile<kRows, 1>(p, j * kWidth);
    case 2:
      if constexpr (kTileVectors > 2) return product_tile<kRows, 2>(p, j * kWidth);
      return;
    case 3:
      if constexpr (kTileVectors > 3) return product_tile<kRows, 3>(p, j * kWidth);
      return;
    default:
      return;
  }
}

// Up to kTileRows rows, any number of vectors.
inline void multiply(const Product& p, int64_t rows, int64_t vectors) {
  switch (rows) {
    case 1:
      return product_rows<1>(p, vectors);
    case 2:
      return product_rows<2>(p, vectors);
    case 3:
      return product_rows<3>(p, vectors);
    case 4:
      return product_rows<4>(p, vectors);
    case 5:
      return product_rows<5>(p, vectors);
    case 6:
      return product_rows<6>(p, vectors);
    default:
      return;
  }
}

// The same for a long sum: of parts of kStepsOfPart steps, whose rounding errors grow less.
inline void multiply_in_parts(Product p, int64_t rows, int64_t vectors) {
  constexpr int64_t kStepsOfPart = 64;
  const int64_t count = p.count;
  for (int64_t k = 0; k < count; k += kStepsOfPart) {
    p.count = std::min(kStepsOfPart, count - k);
    multiply(p, rows, vectors);
    p.a += kStepsOfPart * p.step;
    p.b += kStepsOfPart * p.b_step;
    p.add = true;
  }
}

// 2^x for x <= 127, 0 below -126: 0.7 units in the last place. Polynomial of degree 6 in the
// fraction, fitted for the smallest relative error over [-1/2, 1/2] with 1 as the constant; NaN
// stays.
inline Vec exp2(const Vec& x) {
#if defined(CPU_CAPABILITY_AVX512)
  const Vec y = _mm512_max_ps(_mm512_set1_ps(-160.0f), x);
#else
  const Vec y = _mm256_max_ps(_mm256_set1_ps(-127.0f), x);
#endif
  const Vec whole = y.round();
  const Vec f = y - whole;
  Vec p = at::vec::fmadd(f, Vec(1.535336196e-04f), Vec(1.339887385e-03f));
  p = at::vec::fmadd(p, f, Vec(9.618436918e-03f));
  p = at::vec::fmadd(p, f, Vec(5.550332367e-02f));
  p = at::vec::fmadd(p, f, Vec(2.402264774e-01f));
  p = at::vec::fmadd(p, f, Vec(6.931471825e-01f));
  p = at::vec::fmadd(p, f, Vec(1.0f));
#if defined(CPU_CAPABILITY_AVX512)
  return _mm512_scalef_ps(p, whole);
#else
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127));
  return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
#endif
}

}  // namespace ROOTS_CAPABILITY
}  // namespace roots
