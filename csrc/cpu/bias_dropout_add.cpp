// bias_dropout_add on a CPU: threads over rows, two vectors at a time; the mask is computed anew in
// both directions and never stored.

#include "../ops/bias_dropout_add.h"

#include "column_sum.h"
#include "cpu.h"

namespace roots {
namespace ROOTS_CAPABILITY {
namespace {

using Int = at::vec::Vectorized<int32_t>;

inline Int broadcast(uint32_t bits) { return Int(static_cast<int32_t>(bits)); }

// What one token keeps of its elements, times the scale; everything without keys.
class TokenMask {
 public:
  TokenMask(const Dropout& dropout, int64_t row)
      : drops_(dropout.keys != nullptr), threshold_(dropout.threshold), scale_(dropout.scale) {
    if (!drops_) return;
    const uint64_t key = static_cast<uint64_t>(dropout.keys[row]);
    low_ = static_cast<uint32_t>(key);
    high_ = broadcast(static_cast<uint32_t>(key >> 32));
    const uint32_t gamma = kDropoutGamma;
    steps_ = Int::arange(0, 1) * broadcast(gamma);
  }

  // Elements i, i + 1, ..., of which `value` holds some.
  Pair apply(const Pair& value, int64_t i) const {
    if (!drops_) return value;
    return {part(value.low, i), part(value.high, i + kWidth)};
  }

 private:
  Vec part(const Vec& value, int64_t i) const {
    const Int start = broadcast(low_ + static_cast<uint32_t>(i) * kDropoutGamma);
    Int v = start + steps_;
    v = v ^ ((v >> Int(16)) & Int(0xFFFF));
    v = v * broadcast(kDropoutMix1) + high_;
    v = v ^ ((v >> Int(15)) & Int(0x1FFFF));
    v = v * broadcast(kDropoutMix2);
    return (value * scale_) & at::vec::cast<float, int32_t>(v >= threshold_);
  }

  bool drops_;
  uint32_t low_ = 0;
  Int high_, steps_, threshold_;
  Vec scale_;
};

template <class T>
void forward_rows(const BiasDropoutAddForward& args, int64_t begin, int64_t end) {
  const T* bias = static_cast<const T*>(args.bias);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t start = row * args.width;
    const TokenMask mask(args.dropout, row);
    const T* x = static_cast<const T*>(args.x) + start;
    const T* residual =
        args.residual == nullptr ? nullptr : static_cast<const T*>(args.residual) + start;
    T* y = static_cast<T*>(args.y) + start;
    for_blocks(args.width, [&](int64_t i, auto count) {
      Pair z = load(x + i, count);
      if (bias != nullptr) z = z + load(bias + i, count);
      z = mask.apply(z, i);
      if (residual != nullptr) z = load(residual + i, count) + z;
      store(y + i, z, count);
    });
  }
}

// sums: [width], added to; null without bias.
template <class T>
void backward_rows(const BiasDropoutAddBackward& args, int64_t begin, int64_t end, float* sums) {
  for (int64_t row = begin; row < end; ++row) {
    const TokenMask mask(args.dropout, row);
    const T* dy = static_cast<const T*>(args.dy) + row * args.width;
    T* dx = args.dx == nullptr ? nullptr : static_cast<T*>(args.dx) + row * args.width;
    for_blocks(args.width, [&](int64_t i, auto count) {
      const Pair gradient = mask.apply(load(dy + i, count), i);
      if (dx != nullptr) store(dx + i, gradient, count);
      if (sums != nullptr) add_to(sums + i, gradient, count);
    });
  }
}

}  // namespace

Status bias_dropout_add_forward(const BiasDropoutAddForward& args, Stream) {
  with_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(args.rows, row_grain(args.width),
                 [&](int64_t begin, int64_t end) { forward_rows<T>(args, begin, end); });
  });
  return 0;
}

Status bias_dropout_add_backward(const BiasDropoutAddBackward& args, Stream) {
  with_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (args.dbias != nullptr) {
      sum_columns(args.rows, args.width, args.partial, args.dbias,
                  [&](int64_t begin, int64_t end, float* sums) {
                    backward_rows<T>(args, begin, end, sums);
                  });
    } else {
      parallel_for(args.rows, row_grain(args.width), [&](int64_t begin, int64_t end) {
        backward_rows<T>(args, begin, end, nullptr);
      });
    }
  });
  return 0;
}

}  // namespace ROOTS_CAPABILITY
}  // namespace roots

ROOTS_CPU_LAUNCHER(bias_dropout_add_forward, BiasDropoutAddForward)
ROOTS_CPU_LAUNCHER(bias_dropout_add_backward, BiasDropoutAddBackward)
