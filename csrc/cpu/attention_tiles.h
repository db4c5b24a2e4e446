// What the passes of attention share on a CPU: the rows of a key head, what they see, and copies of
// q, k, v as fp32 tiles.
//
// The G query heads of a key head are taken together: row r = t G + g is query t of head k G + g.
#pragma once

#include <cmath>
#include <limits>
#include <utility>

#include "../ops/attention.h"
#include "attention_product.h"

namespace roots {
namespace ROOTS_CAPABILITY {

// Keys that are taken at a time; tiles begin at multiples of it.
constexpr int64_t kTileKeys = 128;
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Positions [lo, hi).
struct Range {
  int64_t lo;
  int64_t hi;

  bool empty() const { return lo >= hi; }
  Range within(const Range& other) const {
    return {std::max(lo, other.lo), std::min(hi, other.hi)};
  }
  // Counted from `origin` on.
  Range from(int64_t origin) const { return {lo - origin, hi - origin}; }
  // The smallest range that has both; an empty one adds nothing.
  Range with(const Range& other) const {
    if (empty()) return other;
    return other.empty() ? *this : Range{std::min(lo, other.lo), std::max(hi, other.hi)};
  }
};

// The keys that query t of row b of the batch sees.
inline Range visible_keys(const AttentionProblem& problem, int64_t b, int64_t t) {
  Range seen{0, problem.keys};
  if (problem.key_ranges != nullptr) {
    const int32_t* bounds = problem.key_ranges + 2 * (b * problem.queries + t);
    seen = seen.within({bounds[0], bounds[1]});
  }
  const int64_t position = t + problem.keys - problem.queries;
  if (problem.causal) seen.hi = std::min(seen.hi, position + 1);
  if (problem.window > 0) seen.lo = std::max(seen.lo, position - problem.window + 1);
  return seen;
}

// One key head of one row of the batch.
struct Head {
  const AttentionProblem& problem;
  int64_t b;
  int64_t key_head;
  int64_t groups;

  Head(const AttentionProblem& problem, int64_t index)
      : problem(problem),
        b(index / problem.key_heads),
        key_head(index % problem.key_heads),
        groups(problem.heads / problem.key_heads) {}

  int64_t rows() const { return problem.queries * groups; }
  int64_t query(int64_t row) const { return row / groups; }
  int64_t head(int64_t row) const { return key_head * groups + row % groups; }
  Range visible(int64_t row) const { return visible_keys(problem, b, query(row)); }
  // Where a row lies in [B,N,T].
  int64_t statistic(int64_t row) const {
    return (b * problem.heads + head(row)) * problem.queries + query(row);
  }
  // Where a row starts in a contiguous [B,T,N,D].
  int64_t output(int64_t row) const {
    return ((b * problem.queries + query(row)) * problem.heads + head(row)) * problem.head_size;
  }
  template <class T>
  const T* row_of(const AttentionInput& input, int64_t row) const {
    return static_cast<const T*>(input.data) + b * input.batch_stride +
           query(row) * input.token_stride + head(row) * input.head_stride;
  }
  template <class T>
  const T* key_of(const AttentionInput& input, int64_t key) const {
    return static_cast<const T*>(input.data) + b * input.batch_stride + key * input.token_stride +
           key_head * input.head_stride;
  }
};

template <class T>
inline Vec load_vector(const T* source) {
  if constexpr (std::is_same_v<T, float>) {
    return Vec::loadu(source);
#if defined(CPU_CAPABILITY_AVX512)
  } else if constexpr (std::is_same_v<T, c10::BFloat16>) {
    return widen_bfloat16(source);
#endif
  } else {
    Vec value;
    at::vec::load_to_float<T>(source, value);
    return value;
  }
}

// The first `count` < kWidth elements, then zeros.
template <class T>
inline Vec load_vector(const T* source, int64_t count) {
  return load(source, count).low;
}

// Lanes of the vector that begins at key `first` that are in a range are kept, others are `other`.
inline Vec select(const Vec& value, int64_t first, Range seen, float other) {
  const Vec key = Vec::arange(static_cast<float>(first), 1.0f);
  const Vec inside =
      (key >= Vec(static_cast<float>(seen.lo))) & (key < Vec(static_cast<float>(seen.hi)));
  return Vec::blendv(Vec(other), value, inside);
}

// target[0 .. round_up(size, kWidth)) = source[0 .. size), then zeros.
template <class T>
inline void widen(const T* source, float* target, int64_t size) {
  int64_t d = 0;
  for (; d + kWidth <= size; d += kWidth) load_vector(source + d).store(target + d);
  if (d < size) load_vector(source + d, size - d).store(target + d);
}

// target[0 .. size) = source * factor, rounded to T.
template <class T>
inline void narrow(const float* source, float factor, T* target, int64_t size) {
  const Vec f(factor);
  for_blocks(size, [&](int64_t d, auto count) {
    const Pair value = load(source + d, count);
    store(target + d, Pair{value.low * f, value.high * f}, count);
  });
}

// Keys (or values) [lo, hi) of a tile, key s as row s - first of `target`.
template <class T>
inline void pack_rows(const Head& head, const AttentionInput& input, int64_t first, Range keys,
                      float* target) {
  const int64_t size = head.problem.head_size, padded = round_up(size, kWidth);
  for (int64_t s = keys.lo; s < keys.hi; ++s) {
    widen(head.key_of<T>(input, s), target + (s - first) * padded, size);
  }
}

// Exchanges the off-diagonal blocks of kStep x kStep lanes of two rows that are kStep apart.
template <int kStep, size_t... kLanes>
inline void swap_blocks(Vec& upper, Vec& lower, std::index_sequence<kLanes...>) {
#if defined(CPU_CAPABILITY_AVX512)
  const __m512 a = upper, b = lower;
#else
  const __m256 a = upper, b = lower;
#endif
  upper =
      Vec(__builtin_shufflevector(a, b, (kLanes & kStep ? kWidth + kLanes - kStep : kLanes)...));
  lower =
      Vec(__builtin_shufflevector(a, b, (kLanes & kStep ? kWidth + kLanes : kLanes + kStep)...));
}

// Transposes kWidth vectors in registers: log2(kWidth) rounds of exchanges.
template <int kStep = 1>
inline void transpose(Vec* rows) {
  if constexpr (kStep < kWidth) {
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) {
      if ((i & kStep) == 0) {
        swap_blocks<kStep>(rows[i], rows[i + kStep], std::make_index_sequence<kWidth>{});
      }
    }
    transpose<2 * kStep>(rows);
  }
}

// The same keys transposed, in panels of kTileColumns keys: element d of key s lies at
// ((s - first) / kTileColumns * padded + d) * kTileColumns + (s - first) % kTileColumns. What
// stands for keys outside of the range is finite.
template <class T>
inline void pack_columns(const Head& head, const AttentionInput& input, int64_t first, Range keys,
                         float* target) {
  const int64_t size = head.problem.head_size, padded = round_up(size, kWidth);
  const int64_t begin = (keys.lo - first) / kWidth * kWidth;
  for (int64_t column = begin; column < keys.hi - first; column += kWidth) {
    float* panel = target + column / kTileColumns * padded * kTileColumns + column % kTileColumns;
    for (int64_t d = 0; d < size; d += kWidth) {
      Vec block[kWidth];
#pragma GCC unroll 16
      for (int64_t i = 0; i < kWidth; ++i) {
        const int64_t s = first + column + i;
        if (s < keys.lo || s >= keys.hi) {
          block[i] = Vec(0.0f);
        } else {
          const T* source = head.key_of<T>(input, s) + d;
          block[i] = d + kWidth <= size ? load_vector(source) : load_vector(source, size - d);
        }
      }
      transpose(block);
#pragma GCC unroll 16
      for (int64_t i = 0; i < kWidth; ++i) block[i].store(panel + (d + i) * kTileColumns);
    }
  }
}

}  // namespace ROOTS_CAPABILITY
}  // namespace roots
