// y = silu(gate) * up, with (gate, up) the halves of x + bias.
#pragma once

#include "../common.h"

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

}  // namespace roots
