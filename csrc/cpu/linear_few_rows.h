// Arguments of linear_few_rows: the contract between csrc/binding/cpu and the kernel. The op:
// csrc/cpu/schemas.h.
#pragma once

#include "../common.h"

namespace roots {

enum class WeightType : int { kFloat32 = 0, kBFloat16 = 1, kInt8 = 2 };

// Promised by the binding: all sizes >= 1, all tensors contiguous, dtype float32 or bfloat16, a
// float32 weight only with it.
struct LinearFewRows {
  DType dtype;  // of x, bias and y
  WeightType weight_type;
  const void* x;       // [rows, inputs]
  const void* weight;  // [outputs, inputs]
  const void* bias;    // [outputs], or null
  const float* scale;  // [outputs], or null
  void* y;             // [rows, outputs]
  int64_t rows;
  int64_t inputs;
  int64_t outputs;
};
ROOTS_LAUNCHER(linear_few_rows, LinearFewRows)

}  // namespace roots
