// y = residual + keep * (x + bias) * scale, with keep a hash of the token's key and the element.
//
// The bits of element h under the halves (low, high) of a key (see roots/ops/dropout.py):
//   v = low + h * 0x9E3779B9;  v ^= v >> 16;  v = v * 0x7FEB352D + high;  v ^= v >> 15;
//   v *= 0x846CA68B;           kept iff v, as a signed number, is at least `threshold`
#pragma once

#include "../common.h"
#include "column_sum.h"

namespace roots {

constexpr uint32_t kDropoutGamma = 0x9E3779B9u;
constexpr uint32_t kDropoutMix1 = 0x7FEB352Du;
constexpr uint32_t kDropoutMix2 = 0x846CA68Bu;

struct Dropout {
  const int64_t* keys;  // [rows], or null: everything is kept
  int32_t threshold;
  float scale;  // 1 / (1 - rate)
};

struct BiasDropoutAddForward {
  const void* x;         // [rows, width]
  const void* bias;      // [width], or null
  const void* residual;  // [rows, width], or null
  void* y;               // [rows, width]
  Dropout dropout;
  int64_t rows;
  int64_t width;
  DType dtype;
};
ROOTS_LAUNCHER(bias_dropout_add_forward, BiasDropoutAddForward)

struct BiasDropoutAddBackward {
  const void* dy;  // [rows, width]
  void* dx;        // [rows, width]; null without keys, where it equals dy
  float* partial;  // [num_sum_blocks(rows), width]; null without bias
  float* dbias;    // [width]; null without bias
  Dropout dropout;
  int64_t rows;
  int64_t width;
  DType dtype;
};
ROOTS_LAUNCHER(bias_dropout_add_backward, BiasDropoutAddBackward)

}  // namespace roots
