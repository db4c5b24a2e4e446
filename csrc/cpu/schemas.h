// Schemas of the operators that only the CPU library has, for decoding at the speed of memory;
// those of every backend: csrc/schemas.h. They stand here so that the other libraries do not depend
// on them. None has a gradient.
//
// Legend: M rows of x, I inputs, O outputs.
#pragma once

// linear_few_rows: y = x weight^T * scale + bias with x [M,I], weight [O,I] and y [M,O]; sums in
// float32. x, bias and y are float32 or bfloat16; the weight is float32 (with float32 x), bfloat16,
// or int8 with scale, float32 [O].
#define ROOTS_LINEAR_FEW_ROWS_SCHEMAS(X) \
  X("linear_few_rows(Tensor x, Tensor weight, Tensor? bias, Tensor? scale) -> Tensor")

#define ROOTS_CPU_SCHEMAS(X) ROOTS_LINEAR_FEW_ROWS_SCHEMAS(X)
