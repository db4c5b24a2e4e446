// layer_norm and rms_norm on a CPU; formulas: csrc/ops/norm.h.
//
// Forward: threads over rows. A row is read three times, from memory once: it stays in the first
// caches between the passes for the sum, for the squared deviations (so that a large mean costs no
// digits) and for the result.
// Backward: threads over fixed parts of the rows (csrc/ops/column_sum.h). kRows rows go together
// through the pass that sums, so that the sums of dweight and dbias, which are as long as a row,
// are read and written once for all of them.
#pragma once

#include <cmath>
#include <memory>

#include "../ops/norm.h"
#include "column_sum.h"

namespace roots {
namespace ROOTS_CAPABILITY {

// Rows longer than kShortRow go together in backward, as many as the registers hold the sums of.
constexpr int kRows = kWidth == 16 ? 4 : 2;
constexpr int64_t kShortRow = 1024;

// The result of a call that touches this much is stored past the caches, which would not keep it
// whole beside the operands: its lines are not read before they are written, and what the caches
// hold stays there. 1.2 times faster on a processor with 32 MiB of last-level cache.
constexpr int64_t kLargeBytes = int64_t{24} << 20;

inline Pair operator-(const Pair& a, const Pair& b) { return {a.low - b.low, a.high - b.high}; }
inline Pair operator*(const Pair& a, const Pair& b) { return {a.low * b.low, a.high * b.high}; }
inline Pair fused(const Pair& a, const Pair& b, const Pair& c) {
  return {at::vec::fmadd(a.low, b.low, c.low), at::vec::fmadd(a.high, b.high, c.high)};
}
inline Pair broadcast(float value) { return {Vec(value), Vec(value)}; }
inline float sum(const Pair& pair) { return sum(pair.low + pair.high); }

// The first `count` elements, zero behind them.
inline Pair masked(const Pair& pair, int64_t count) {
  const Vec zero(0.0f);
  return {Vec::set(zero, pair.low, std::min(count, kWidth)),
          Vec::set(zero, pair.high, std::max<int64_t>(count - kWidth, 0))};
}
inline Pair masked(const Pair& pair, Whole) { return pair; }

// Past the caches, for what is too large to stay there: no line is read before it is written.
// `target` is aligned to a vector.
template <class T>
inline void store_past_caches(T* target, const Pair& value) {
#if defined(ROOTS_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<T, float>) {
    _mm512_stream_ps(target, value.low);
    _mm512_stream_ps(target + kWidth, value.high);
  } else {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(target), narrow_bfloat16(value));
  }
#else
  if constexpr (std::is_same_v<T, float>) {
    _mm256_stream_ps(target, value.low);
    _mm256_stream_ps(target + kWidth, value.high);
  } else {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(target),
                        at::vec::convert_from_float<T>(value.low, value.high));
  }
#endif
}

// How the rows of a result are stored. num_tensors: of this size, those that the call reads and
// writes.
template <class T>
class Writer {
 public:
  Writer(void* data, int64_t rows, int64_t size, int num_tensors)
      : data_(static_cast<T*>(data)), past_caches_(is_large(data, num_tensors * rows, size)) {}
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;
  // Makes what went past the caches visible to other threads.
  ~Writer() {
    if (past_caches_) _mm_sfence();
  }

  void store_block(int64_t offset, const Pair& value, auto count) const {
    if constexpr (std::is_same_v<decltype(count), Whole>) {
      if (past_caches_) return store_past_caches(data_ + offset, value);
    }
    store(data_ + offset, value, count);
  }

 private:
  static bool is_large(const void* data, int64_t rows, int64_t size) {
    const int64_t line = 64, row_bytes = size * static_cast<int64_t>(sizeof(T));
    return rows * row_bytes >= kLargeBytes && row_bytes % line == 0 &&
           reinterpret_cast<uintptr_t>(data) % line == 0;
  }
  T* data_;
  bool past_caches_;
};

// Brings the lines of a block that is soon read, or written, into the second cache.
template <bool kWrite = false, class T>
inline void prefetch(const T* block) {
  for (int64_t i = 0; i < kBlock; i += 64 / static_cast<int64_t>(sizeof(T))) {
    __builtin_prefetch(block + i, kWrite ? 1 : 0, 2);
  }
}

// The weight, one added if zero_centred, and the bias as float32: read once for many rows.
class Scales {
 public:
  template <class T>
  Scales(const T* weight, const T* bias, int64_t size, bool zero_centred)
      : weight_(new float[size]), bias_(bias == nullptr ? nullptr : new float[size]) {
    const Pair one = broadcast(zero_centred ? 1.0f : 0.0f);
    for_blocks(size, [&](int64_t i, auto count) {
      store(weight_.get() + i, load(weight + i, count) + one, count);
      if (bias != nullptr) store(bias_.get() + i, load(bias + i, count), count);
    });
  }
  const float* weight() const { return weight_.get(); }
  const float* bias() const { return bias_.get(); }

 private:
  std::unique_ptr<float[]> weight_, bias_;
};

// Forward.

// Sum of the stream, which is written here if there is a residual; of its squares in rms_norm.
template <bool kCentred, class T>
inline float sum_row(const T* x, const T* residual, T* stream, int64_t size) {
  Pair total = broadcast(0.0f);
  for_blocks(size, [&](int64_t i, auto count) {
    Pair value = load(x + i, count);
    if (residual != nullptr) {
      value = value + load(residual + i, count);
      store(stream + i, value, count);
      // As rounded: what backward sees.
      if constexpr (sizeof(T) < sizeof(float)) value = load(stream + i, count);
    }
    total = kCentred ? total + value : fused(value, value, total);
  });
  return sum(total);
}

template <class T>
inline float sum_squared_deviations(const T* row, float mean, int64_t size) {
  const Pair centre = broadcast(mean);
  Pair total = broadcast(0.0f);
  for_blocks(size, [&](int64_t i, auto count) {
    const Pair deviation = masked(load(row + i, count) - centre, count);
    total = fused(deviation, deviation, total);
  });
  return sum(total);
}

template <bool kCentred, class T>
inline void forward_row(const NormForward& args, const Scales& scales, int64_t row,
                        const Writer<T>& y) {
  const int64_t size = args.hidden, offset = row * size;
  const T* x = static_cast<const T*>(args.x) + offset;
  const T* residual = args.residual ? static_cast<const T*>(args.residual) + offset : nullptr;
  T* stream = args.residual ? static_cast<T*>(args.stream) + offset : nullptr;
  const float total = sum_row<kCentred>(x, residual, stream, size);
  if (residual != nullptr) x = stream;
  const float mean = kCentred ? total / static_cast<float>(size) : 0.0f;
  const float squares = kCentred ? sum_squared_deviations(x, mean, size) : total;
  const float rstd = 1.0f / std::sqrt(squares / static_cast<float>(size) + args.epsilon);
  if (kCentred) args.mean[row] = mean;
  args.rstd[row] = rstd;
  const Pair centre = broadcast(mean), scale = broadcast(rstd);
  const float *weight = scales.weight(), *bias = scales.bias();
  const int64_t next = row + 1 < args.rows ? offset + size : offset;
  const T* next_x = static_cast<const T*>(args.x) + next;
  const T* next_residual = args.residual ? static_cast<const T*>(args.residual) + next : next_x;
  const T* next_stream = args.residual ? static_cast<const T*>(args.stream) + next : next_x;
  for_blocks(size, [&](int64_t i, auto count) {
    prefetch(next_x + i);
    if (residual != nullptr) {
      prefetch(next_residual + i);
      prefetch<true>(next_stream + i);
    }
    Pair normal = load(x + i, count);
    if (kCentred) normal = normal - centre;
    normal = normal * scale;
    const Pair w = load(weight + i, count);
    const Pair value = bias ? fused(normal, w, load(bias + i, count)) : normal * w;
    y.store_block(offset + i, value, count);
  });
}

template <bool kCentred>
inline void norm_forward(const NormForward& args) {
  with_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(args.rows, row_grain(args.hidden), [&](int64_t begin, int64_t end) {
      const Scales scales(static_cast<const T*>(args.weight), static_cast<const T*>(args.bias),
                          args.hidden, args.zero_centred);
      const Writer<T> y(args.y, args.rows, args.hidden, args.residual ? 4 : 2);
      for (int64_t row = begin; row < end; ++row) forward_row<kCentred, T>(args, scales, row, y);
    });
  });
}

// Backward.

// The sums of g and of g * normal of one row.
struct RowSums {
  float g, projection;
};

template <bool kCentred, class T>
inline Pair normal_of(const T* stream, const Pair& mean, const Pair& rstd, auto count) {
  const Pair value = load(stream, count);
  return (kCentred ? value - mean : value) * rstd;
}

// Sums of kCount rows: over each row, and over the rows, added to dweight and dbias.
template <bool kCentred, bool kBias, int kCount, class T>
inline void sum_rows(const NormBackward& args, const float* weight, int64_t row, float* dweight,
                     float* dbias, RowSums* sums) {
  const int64_t size = args.hidden;
  const T* dy = static_cast<const T*>(args.dy) + row * size;
  const T* stream = static_cast<const T*>(args.stream) + row * size;
  Pair mean[kCount], rstd[kCount];
  Vec g_sum[kCount], projection[kCount];
#pragma GCC unroll 4
  for (int r = 0; r < kCount; ++r) {
    mean[r] = broadcast(kCentred ? args.mean[row + r] : 0.0f);
    rstd[r] = broadcast(args.rstd[row + r]);
    g_sum[r] = projection[r] = Vec(0.0f);
  }
  for_blocks(size, [&](int64_t i, auto count) {
    const Pair w = load(weight + i, count);
    Pair of_weight = load(dweight + i, count);
    Pair of_bias = kBias ? load(dbias + i, count) : broadcast(0.0f);
#pragma GCC unroll 4
    for (int r = 0; r < kCount; ++r) {
      const Pair grad = load(dy + r * size + i, count);
      const Pair normal =
          masked(normal_of<kCentred>(stream + r * size + i, mean[r], rstd[r], count), count);
      const Pair g = grad * w;
      if (kCentred) g_sum[r] = g_sum[r] + g.low + g.high;
      projection[r] = at::vec::fmadd(g.low, normal.low, projection[r]);
      projection[r] = at::vec::fmadd(g.high, normal.high, projection[r]);
      of_weight = fused(grad, normal, of_weight);
      if (kBias) of_bias = of_bias + grad;
    }
    store(dweight + i, of_weight, count);
    if (kBias) store(dbias + i, of_bias, count);
  });
#pragma GCC unroll 4
  for (int r = 0; r < kCount; ++r) sums[r] = {sum(g_sum[r]), sum(projection[r])};
}

template <bool kCentred, class T>
inline void backward_row(const NormBackward& args, const float* weight, int64_t row,
                         const RowSums& sums, int64_t ahead, const Writer<T>& dx) {
  const int64_t size = args.hidden, offset = row * size;
  const T* dy = static_cast<const T*>(args.dy) + offset;
  const T* stream = static_cast<const T*>(args.stream) + offset;
  const T* dstream = args.dstream ? static_cast<const T*>(args.dstream) + offset : nullptr;
  const float share = 1.0f / static_cast<float>(size);
  const Pair mean = broadcast(kCentred ? args.mean[row] : 0.0f), rstd = broadcast(args.rstd[row]);
  const Pair shift = broadcast(sums.g * share), slope = broadcast(sums.projection * share);
  for_blocks(size, [&](int64_t i, auto count) {
    prefetch(dy + ahead + i);
    prefetch(stream + ahead + i);
    const Pair normal = normal_of<kCentred>(stream + i, mean, rstd, count);
    Pair g = load(dy + i, count) * load(weight + i, count);
    if (kCentred) g = g - shift;
    Pair grad = (g - normal * slope) * rstd;
    if (dstream != nullptr) grad = grad + load(dstream + i, count);
    dx.store_block(offset + i, grad, count);
  });
}

template <bool kCentred, bool kBias, int kCount, class T>
inline void backward_rows(const NormBackward& args, const float* weight, int64_t row,
                          float* partial, const Writer<T>& dx) {
  RowSums sums[kCount];
  sum_rows<kCentred, kBias, kCount, T>(args, weight, row, partial, partial + args.hidden, sums);
  const int64_t ahead = row + 2 * kCount <= args.rows ? kCount * args.hidden : 0;
#pragma GCC unroll 4
  for (int r = 0; r < kCount; ++r) {
    backward_row<kCentred, T>(args, weight, row + r, sums[r], ahead, dx);
  }
}

template <bool kCentred, bool kBias, class T>
inline void backward_all(const NormBackward& args) {
  const Scales scales(static_cast<const T*>(args.weight), static_cast<const T*>(nullptr),
                      args.hidden, args.zero_centred);
  const float* weight = scales.weight();
  const int64_t hidden = args.hidden, stride = (kBias ? 2 : 1) * hidden;
  sum_row_blocks(args.rows, stride, args.partial, [&](int64_t begin, int64_t end, float* sums) {
    const Writer<T> dx(args.dx, args.rows, hidden, args.dstream ? 4 : 3);
    int64_t row = begin;
    for (; hidden > kShortRow && row + kRows <= end; row += kRows) {
      backward_rows<kCentred, kBias, kRows, T>(args, weight, row, sums, dx);
    }
    for (; row < end; ++row) {
      backward_rows<kCentred, kBias, 1, T>(args, weight, row, sums, dx);
    }
  });
  const int64_t blocks = num_sum_blocks(args.rows);
  add_row_blocks(args.partial, blocks, stride, hidden, args.dweight);
  if (kBias) add_row_blocks(args.partial + hidden, blocks, stride, hidden, args.dbias);
}

template <bool kCentred>
inline void norm_backward(const NormBackward& args) {
  with_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (kCentred && args.dbias != nullptr) {
      backward_all<kCentred, true, T>(args);
    } else {
      backward_all<kCentred, false, T>(args);
    }
  });
}

}  // namespace ROOTS_CAPABILITY
}  // namespace roots
