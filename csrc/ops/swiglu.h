// y = silu(gate) * up, with (gate, up) the halves of x + bias.
#pragma once

#include "../common.h"
#include "column_sum.h"

namespace roots {

struct SwigluForward {
  const void* x;     // [rows, 2 width]
  const void* bias;  // [2 width], or null
  void* y;           // [rows, width]
  int64_t rows;
  int64_t width;
  DType dtype;
};
ROOTS_LAUNCHER(swiglu_forward, SwigluForward)

struct SwigluBackward {
  const void* dy;    // [rows, width]
  const void* x;     // [rows, 2 width]
  const void* bias;  // [2 width], or null
  void* dx;          // [rows, 2 width]
  float* partial;    // [num_sum_blocks(rows), 2 width]; null without bias
  float* dbias;      // [2 width]; null without bias
  int64_t rows;
  int64_t width;
  DType dtype;
};
ROOTS_LAUNCHER(swiglu_backward, SwigluBackward)

}  // namespace roots
