// swiglu on a CPU: threads over rows, two vectors of gate and up at a time.

#include "../ops/swiglu.h"

#include "cpu.h"

namespace roots {
namespace ROOTS_CAPABILITY {
namespace {

inline Vec sigmoid(const Vec& x) { return Vec(1.0f) / (Vec(1.0f) + x.neg().exp()); }

inline Vec silu_times(const Vec& gate, const Vec& up) { return gate * sigmoid(gate) * up; }

template <class T>
inline void forward_block(const T* gate, const T* up, const T* gate_bias, const T* up_bias, T* y,
                          int64_t count) {
  Pair g = load(gate, count), u = load(up, count);
  if (gate_bias != nullptr) {
    const Pair gb = load(gate_bias, count), ub = load(up_bias, count);
    g = {g.low + gb.low, g.high + gb.high};
    u = {u.low + ub.low, u.high + ub.high};
  }
  store(y, Pair{silu_times(g.low, u.low), silu_times(g.high, u.high)}, count);
}

template <class T>
void forward_rows(const SwigluForward& args, int64_t begin, int64_t end) {
  const int64_t width = args.width;
  const T* bias = static_cast<const T*>(args.bias);
  for (int64_t row = begin; row < end; ++row) {
    const T* gate = static_cast<const T*>(args.x) + row * 2 * width;
    T* y = static_cast<T*>(args.y) + row * width;
    for (int64_t i = 0; i < width; i += kBlock) {
      forward_block(gate + i, gate + width + i, bias == nullptr ? nullptr : bias + i,
                    bias == nullptr ? nullptr : bias + width + i, y + i,
                    std::min(kBlock, width - i));
    }
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

}  // namespace ROOTS_CAPABILITY
}  // namespace roots

ROOTS_CPU_LAUNCHER(swiglu_forward, SwigluForward)
