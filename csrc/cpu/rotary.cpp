// rotary on a CPU: threads over tokens; the table's row of a token stays in the first-level cache
// for all of its heads.

#include "../ops/rotary.h"

#include <cstring>

#include "cpu.h"

namespace roots {
namespace ROOTS_CAPABILITY {
namespace {

inline Pair times(const Pair& a, const Pair& b) { return {a.low * b.low, a.high * b.high}; }

inline Pair times_plus(const Pair& a, const Pair& b, const Pair& c) {
  return {at::vec::fmadd(a.low, b.low, c.low), at::vec::fmadd(a.high, b.high, c.high)};
}

inline Pair negated(const Pair& a) { return {a.low.neg(), a.high.neg()}; }

// Pairs (i, i + angles). `sign` is that of the angles.
template <class T>
inline void rotate_halves(const T* x, T* y, const float* cos, const float* sin, int64_t angles,
                          bool inverse) {
  for_blocks(angles, [&](int64_t i, auto count) {
    const Pair first = load(x + i, count), second = load(x + angles + i, count);
    const Pair c = load(cos + i, count), positive = load(sin + i, count);
    const Pair s = inverse ? negated(positive) : positive;
    store(y + i, times_plus(first, c, negated(times(second, s))), count);
    store(y + angles + i, times_plus(second, c, times(first, s)), count);
  });
}

// Pairs (2i, 2i + 1), of which a block holds kWidth.
template <class T>
inline void rotate_neighbours(const T* x, T* y, const float* cos, const float* sin, int64_t angles,
                              bool inverse) {
  for_blocks(2 * angles, [&](int64_t i, auto count) {
    const Pair packed = load(x + i, count);
    const auto [first, second] = at::vec::deinterleave2(packed.low, packed.high);
    const int64_t width = std::min(kWidth, angles - i / 2);
    const Vec c = Vec::loadu(cos + i / 2, width), positive = Vec::loadu(sin + i / 2, width);
    const Vec s = inverse ? positive.neg() : positive;
    const auto [low, high] = at::vec::interleave2(at::vec::fmadd(first, c, (second * s).neg()),
                                                  at::vec::fmadd(second, c, first * s));
    store(y + i, Pair{low, high}, count);
  });
}

template <class T>
void rotate_token(const Rotary& args, int64_t row, int64_t token) {
  const int64_t index = row * args.tokens + token;
  const int64_t place = args.positions != nullptr ? args.positions[index]
                        : args.table_of_rows      ? index
                                                  : token;
  const float* cos = args.cos + place * args.angles;
  const float* sin = args.sin + place * args.angles;
  const T* x =
      static_cast<const T*>(args.x) + row * args.x_strides.row + token * args.x_strides.token;
  T* y = static_cast<T*>(args.y) + row * args.y_strides.row + token * args.y_strides.token;
  const int64_t rotated = 2 * args.angles;
  for (int64_t head = 0; head < args.heads; ++head) {
    if (args.interleaved) {
      rotate_neighbours(x, y, cos, sin, args.angles, args.inverse);
    } else {
      rotate_halves(x, y, cos, sin, args.angles, args.inverse);
    }
    if (x != y) std::memcpy(y + rotated, x + rotated, (args.head_size - rotated) * sizeof(T));
    x += args.x_strides.head;
    y += args.y_strides.head;
  }
}

}  // namespace

Status rotary(const Rotary& args, Stream) {
  with_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(args.rows * args.tokens, row_grain(args.heads * args.head_size),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t index = begin; index < end; ++index) {
                     rotate_token<T>(args, index / args.tokens, index % args.tokens);
                   }
                 });
  });
  return 0;
}

}  // namespace ROOTS_CAPABILITY
}  // namespace roots

ROOTS_CPU_LAUNCHER(rotary, Rotary)
