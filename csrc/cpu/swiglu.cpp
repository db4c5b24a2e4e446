// swiglu on a CPU: threads over rows, two vectors of gate and up at a time. Backward reads x once
// and computes the sigmoid again.

#include "../ops/swiglu.h"

#include "activation.h"
#include "column_sum.h"
#include "cpu.h"

namespace roots {
namespace ROOTS_CAPABILITY {
namespace {

template <class T>
struct GatedRow {
  const T* gate;
  const T* up;
  const T* gate_bias;  // null without bias
  const T* up_bias;

  GatedRow(const void* x, const void* bias, int64_t row, int64_t width)
      : gate(static_cast<const T*>(x) + row * 2 * width),
        up(gate + width),
        gate_bias(static_cast<const T*>(bias)),
        up_bias(bias == nullptr ? nullptr : gate_bias + width) {}

  template <class Count>
  Pair gate_at(int64_t i, Count count) const {
    const Pair x = load(gate + i, count);
    return gate_bias == nullptr ? x : x + load(gate_bias + i, count);
  }

  template <class Count>
  Pair up_at(int64_t i, Count count) const {
    const Pair x = load(up + i, count);
    return up_bias == nullptr ? x : x + load(up_bias + i, count);
  }
};

template <class T>
inline Vec silu_times(const Vec& gate, const Vec& up) {
  return gate * logistic<T>(gate).below * up;
}

template <class T>
void forward_rows(const SwigluForward& args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const GatedRow<T> x(args.x, args.bias, row, args.width);
    T* y = static_cast<T*>(args.y) + row * args.width;
    for_blocks(args.width, [&](int64_t i, auto count) {
      const Pair g = x.gate_at(i, count), u = x.up_at(i, count);
      store(y + i, Pair{silu_times<T>(g.low, u.low), silu_times<T>(g.high, u.high)}, count);
    });
  }
}

struct Gradients {
  Vec gate, up;
};

// With s = sigmoid(gate): dup = dy gate s, dgate = dy up s (1 + gate (1 - s)).
template <class T>
inline Gradients gradients(const Vec& dy, const Vec& gate, const Vec& up) {
  const Logistic s = logistic<T>(gate);
  const Vec slope = s.below * at::vec::fmadd(gate, s.above, Vec(1.0f));
  return {dy * up * slope, dy * gate * s.below};
}

// sums: [2 width], added to; null without bias.
template <class T>
void backward_rows(const SwigluBackward& args, int64_t begin, int64_t end, float* sums) {
  const int64_t width = args.width;
  for (int64_t row = begin; row < end; ++row) {
    const GatedRow<T> x(args.x, args.bias, row, width);
    const T* dy = static_cast<const T*>(args.dy) + row * width;
    T* dx = static_cast<T*>(args.dx) + row * 2 * width;
    for_blocks(width, [&](int64_t i, auto count) {
      const Pair d = load(dy + i, count), g = x.gate_at(i, count), u = x.up_at(i, count);
      const Gradients low = gradients<T>(d.low, g.low, u.low);
      const Gradients high = gradients<T>(d.high, g.high, u.high);
      const Pair dgate{low.gate, high.gate}, dup{low.up, high.up};
      store(dx + i, dgate, count);
      store(dx + width + i, dup, count);
      if (sums != nullptr) {
        add_to(sums + i, dgate, count);
        add_to(sums + width + i, dup, count);
      }
    });
  }
}

}  // namespace

Status swiglu_forward(const SwigluForward& args, Stream) {
  with_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(args.rows, row_grain(args.width),
                 [&](int64_t begin, int64_t end) { forward_rows<T>(args, begin, end); });
  });
  return 0;
}

Status swiglu_backward(const SwigluBackward& args, Stream) {
  with_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (args.bias != nullptr) {
      sum_columns(args.rows, 2 * args.width, args.partial, args.dbias,
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

ROOTS_CPU_LAUNCHER(swiglu_forward, SwigluForward)
ROOTS_CPU_LAUNCHER(swiglu_backward, SwigluBackward)
