// scaled_masked_softmax on a CPU: threads over rows. A row is read once; its exponentials stay in
// float32 and in cache (in the row of y itself if that is float32) until their sum is known.

#include "../ops/scaled_masked_softmax.h"

#include <limits>
#include <memory>

#include "cpu.h"
#include "exponential.h"

namespace roots {
namespace ROOTS_CAPABILITY {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// value where the byte is not 0, -infinity where it is.
inline Vec where_visible(const uint8_t* visible, const Vec& value) {
#if defined(ROOTS_CAPABILITY_AVX512)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(visible));
  return _mm512_mask_blend_ps(_mm_test_epi8_mask(bytes, bytes), Vec(-kInfinity), value);
#else
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(visible));
  const __m256i hidden = _mm256_cmpeq_epi32(_mm256_cvtepu8_epi32(bytes), _mm256_setzero_si256());
  return _mm256_blendv_ps(value, Vec(-kInfinity), _mm256_castsi256_ps(hidden));
#endif
}

struct NoMask {
  template <class Count>
  Pair operator()(const Pair& value, int64_t, Count) const {
    return value;
  }
};

struct VisibleMask {
  const uint8_t* row;
  Pair operator()(const Pair& value, int64_t i, Whole) const {
    return {where_visible(row + i, value.low), where_visible(row + i + kWidth, value.high)};
  }
  Pair operator()(const Pair& value, int64_t i, int64_t count) const {
    uint8_t bytes[kBlock] = {};
    std::copy_n(row + i, count, bytes);
    return {where_visible(bytes, value.low), where_visible(bytes + kWidth, value.high)};
  }
};

template <class T>
struct AddedMask {
  const T* row;
  template <class Count>
  Pair operator()(const Pair& value, int64_t i, Count count) const {
    return value + load(row + i, count);
  }
};

// The first `visible` keys of a row; the others get zeros. `work` holds as many floats.
template <class T, class Mask>
void forward_row(const T* scores, T* y, const Mask& mask, float scale, int64_t visible,
                 int64_t keys, float* work) {
  const Vec scales(scale);
  Pair largest{Vec(-kInfinity), Vec(-kInfinity)};
  for_blocks(visible, [&](int64_t i, auto count) {
    const Pair score = load(scores + i, count);
    const Pair value = mask(Pair{score.low * scales, score.high * scales}, i, count);
    store(work + i, value, count);
    if constexpr (std::is_same_v<decltype(count), Whole>) {
      largest = {at::vec::maximum(largest.low, value.low),
                 at::vec::maximum(largest.high, value.high)};
    }
  });
  float row_max = maximum(at::vec::maximum(largest.low, largest.high));
  for (int64_t i = visible - visible % kBlock; i < visible; ++i) {
    if (!(work[i] <= row_max)) row_max = work[i];
  }
  if (row_max == -kInfinity) visible = 0;
  const Vec shift(row_max);
  Pair total{Vec(0.0f), Vec(0.0f)};
  float rest = 0.0f;
  for_blocks(visible, [&](int64_t i, auto count) {
    const Pair value = load(work + i, count);
    const Pair exponential{exp_of_nonpositive(value.low - shift),
                           exp_of_nonpositive(value.high - shift)};
    store(work + i, exponential, count);
    if constexpr (std::is_same_v<decltype(count), Whole>) {
      total = total + exponential;
    } else {
      for (int64_t k = i; k < visible; ++k) rest += work[k];
    }
  });
  const Vec factor(1.0f / (sum(total.low + total.high) + rest));
  for_blocks(visible, [&](int64_t i, auto count) {
    const Pair value = load(work + i, count);
    store(y + i, Pair{value.low * factor, value.high * factor}, count);
  });
  std::fill_n(y + visible, keys - visible, T(0.0f));
}

template <class T>
void forward_rows(const ScaledMaskedSoftmaxForward& args, int64_t begin, int64_t end) {
  std::unique_ptr<float[]> buffer;
  if constexpr (!std::is_same_v<T, float>) buffer.reset(new float[args.keys]);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t t = row % args.queries, n = row / args.queries % args.heads,
                  b = row / args.queries / args.heads;
    const int64_t seen = t + args.keys - args.queries + 1;
    const int64_t visible = args.causal ? std::clamp<int64_t>(seen, 0, args.keys) : args.keys;
    const int64_t place =
        b * args.mask_batch_stride + n * args.mask_head_stride + t * args.mask_query_stride;
    const T* scores = static_cast<const T*>(args.scores) + row * args.keys;
    T* y = static_cast<T*>(args.y) + row * args.keys;
    float* work;
    if constexpr (std::is_same_v<T, float>) {
      work = y;
    } else {
      work = buffer.get();
    }
    const auto run = [&](const auto& mask) {
      forward_row(scores, y, mask, args.scale, visible, args.keys, work);
    };
    switch (args.mask_kind) {
      case MaskKind::kNone:
        run(NoMask{});
        break;
      case MaskKind::kVisible:
        run(VisibleMask{static_cast<const uint8_t*>(args.mask) + place});
        break;
      case MaskKind::kAdded:
        run(AddedMask<T>{static_cast<const T*>(args.mask) + place});
        break;
    }
  }
}

// dscores = scale * y * (dy - sum(dy * y))
template <class T>
void backward_row(const T* dy, const T* y, T* dscores, float scale, int64_t keys) {
  Pair total{Vec(0.0f), Vec(0.0f)};
  for_blocks(keys, [&](int64_t i, auto count) {
    const Pair gradient = load(dy + i, count), value = load(y + i, count);
    total = {at::vec::fmadd(gradient.low, value.low, total.low),
             at::vec::fmadd(gradient.high, value.high, total.high)};
  });
  const Vec dot(sum(total.low + total.high)), scales(scale);
  for_blocks(keys, [&](int64_t i, auto count) {
    const Pair gradient = load(dy + i, count), value = load(y + i, count);
    store(dscores + i,
          Pair{(gradient.low - dot) * value.low * scales,
               (gradient.high - dot) * value.high * scales},
          count);
  });
}

}  // namespace

Status scaled_masked_softmax_forward(const ScaledMaskedSoftmaxForward& args, Stream) {
  with_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(args.rows, row_grain(args.keys),
                 [&](int64_t begin, int64_t end) { forward_rows<T>(args, begin, end); });
  });
  return 0;
}

Status scaled_masked_softmax_backward(const ScaledMaskedSoftmaxBackward& args, Stream) {
  with_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(args.rows, row_grain(args.keys), [&](int64_t begin, int64_t end) {
      for (int64_t at = begin * args.keys; at < end * args.keys; at += args.keys) {
        backward_row(static_cast<const T*>(args.dy) + at, static_cast<const T*>(args.y) + at,
                     static_cast<T*>(args.dscores) + at, args.scale, args.keys);
      }
    });
  });
  return 0;
}

}  // namespace ROOTS_CAPABILITY
}  // namespace roots

ROOTS_CPU_LAUNCHER(scaled_masked_softmax_forward, ScaledMaskedSoftmaxForward)
ROOTS_CPU_LAUNCHER(scaled_masked_softmax_backward, ScaledMaskedSoftmaxBackward)
