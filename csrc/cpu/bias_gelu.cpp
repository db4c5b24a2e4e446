// bias_gelu on a CPU: threads over rows, two vectors at a time. Backward reads x once and computes
// Phi again.

#include "../ops/bias_gelu.h"

#include "activation.h"
#include "column_sum.h"
#include "cpu.h"

namespace roots {
namespace ROOTS_CAPABILITY {
namespace {

// gelu(z) = z Phi(z), and its derivative Phi(z) + z phi(z). By the symmetry of Phi both need only
// the tail on the negative side: gelu(z) = max(z, 0) - |z| Phi(-|z|).
template <class T>
struct Exact {
  static Vec value(const Vec& z) {
    const Normal n = normal<T>(z);
    return at::vec::fnmadd(n.u, n.tail, at::vec::clamp_min(z, Vec(0.0f)));
  }
  static Vec slope(const Vec& z) {
    const Normal n = normal<T>(z);
    const Vec left = at::vec::fnmadd(n.u, n.density, n.tail);
    return Vec(0.5f) + ((Vec(0.5f) - left) ^ (z & Vec(-0.0f)));
  }
};

// Phi(z) ~ (1 + tanh(a)) / 2 = sigmoid(2 a) with a = sqrt(2 / pi) (z + 0.044715 z^3).
template <class T>
struct Tanh {
  static constexpr float kLinear = 1.5957691216f;  // 2 sqrt(2 / pi)
  static constexpr float kCubic = 0.0713548163f;   // 0.044715 times that

  static Vec value(const Vec& z) { return z * logistic<T>(twice_a(z, z * z)).below; }
  static Vec slope(const Vec& z) {
    const Vec square = z * z;
    const Logistic s = logistic<T>(twice_a(z, square));
    const Vec inner = z * at::vec::fmadd(square, Vec(3.0f * kCubic), Vec(kLinear));
    return s.below * at::vec::fmadd(inner, s.above, Vec(1.0f));
  }

 private:
  static Vec twice_a(const Vec& z, const Vec& square) {
    return z * at::vec::fmadd(square, Vec(kCubic), Vec(kLinear));
  }
};

// x + bias, of which bias may be null.
template <class T, class Count>
inline Pair biased(const T* x, const T* bias, int64_t i, Count count) {
  const Pair z = load(x + i, count);
  return bias == nullptr ? z : z + load(bias + i, count);
}

template <class T, class Form>
void forward_rows(const BiasGeluForward& args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(args.x) + row * args.width;
    T* y = static_cast<T*>(args.y) + row * args.width;
    for_blocks(args.width, [&](int64_t i, auto count) {
      const Pair z = biased(x, static_cast<const T*>(args.bias), i, count);
      store(y + i, Pair{Form::value(z.low), Form::value(z.high)}, count);
    });
  }
}

// sums: [width], added to; null without bias.
template <class T, class Form>
void backward_rows(const BiasGeluBackward& args, int64_t begin, int64_t end, float* sums) {
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(args.x) + row * args.width;
    const T* dy = static_cast<const T*>(args.dy) + row * args.width;
    T* dx = static_cast<T*>(args.dx) + row * args.width;
    for_blocks(args.width, [&](int64_t i, auto count) {
      const Pair z = biased(x, static_cast<const T*>(args.bias), i, count);
      const Pair d = load(dy + i, count);
      const Pair gradient{d.low * Form::slope(z.low), d.high * Form::slope(z.high)};
      store(dx + i, gradient, count);
      if (sums != nullptr) add_to(sums + i, gradient, count);
    });
  }
}

template <class T, class Form>
void forward(const BiasGeluForward& args) {
  parallel_for(args.rows, row_grain(args.width),
               [&](int64_t begin, int64_t end) { forward_rows<T, Form>(args, begin, end); });
}

template <class T, class Form>
void backward(const BiasGeluBackward& args) {
  if (args.bias != nullptr) {
    sum_columns(args.rows, args.width, args.partial, args.dbias,
                [&](int64_t begin, int64_t end, float* sums) {
                  backward_rows<T, Form>(args, begin, end, sums);
                });
  } else {
    parallel_for(args.rows, row_grain(args.width), [&](int64_t begin, int64_t end) {
      backward_rows<T, Form>(args, begin, end, nullptr);
    });
  }
}

}  // namespace

Status bias_gelu_forward(const BiasGeluForward& args, Stream) {
  with_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    args.tanh ? forward<T, Tanh<T>>(args) : forward<T, Exact<T>>(args);
  });
  return 0;
}

Status bias_gelu_backward(const BiasGeluBackward& args, Stream) {
  with_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    args.tanh ? backward<T, Tanh<T>>(args) : backward<T, Exact<T>>(args);
  });
  return 0;
}

}  // namespace ROOTS_CAPABILITY
}  // namespace roots

ROOTS_CPU_LAUNCHER(bias_gelu_forward, BiasGeluForward)
ROOTS_CPU_LAUNCHER(bias_gelu_backward, BiasGeluBackward)
