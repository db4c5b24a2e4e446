// y = gelu(z) with z = x + bias: z Phi(z), or the approximation of Phi by a tanh.
#pragma once

#include "../common.h"
#include "column_sum.h"

namespace roots {

struct BiasGeluForward {
  const void* x;     // [rows, width]
  const void* bias;  // [width], or null
  void* y;           // [rows, width]
  int64_t rows;
  int64_t width;
  bool tanh;
  DType dtype;
};
ROOTS_LAUNCHER(bias_gelu_forward, BiasGeluForward)

struct BiasGeluBackward {
  const void* dy;    // [rows, width]
  const void* x;     // [rows, width]
  const void* bias;  // [width], or null
  void* dx;          // [rows, width]
  float* partial;    // [num_sum_blocks(rows), width]; null without bias
  float* dbias;      // [width]; null without bias
  int64_t rows;
  int64_t width;
  bool tanh;
  DType dtype;
};
ROOTS_LAUNCHER(bias_gelu_backward, BiasGeluBackward)

}  // namespace roots
