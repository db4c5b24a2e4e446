// Schemas of the operators that only the CPU library has, for decoding at the speed of memory;
// those of every backend: csrc/schemas.h. They stand here so that the other libraries do not depend
// on them. None has a gradient.
//
// Legend: M rows of x, I inputs, O outputs, N tokens of all rows, n heads, k key heads, D head
// size, L distances.
#pragma once

// linear_few_rows: y = x weight^T * scale + bias with x [M,I], weight [O,I] and y [M,O]; sums in
// float32. x, bias and y are float32 or bfloat16; the weight is float32 (with float32 x), bfloat16,
// or int8 with scale, float32 [O].
#define ROOTS_LINEAR_FEW_ROWS_SCHEMAS(X) \
  X("linear_few_rows(Tensor x, Tensor weight, Tensor? bias, Tensor? scale) -> Tensor")

// attention_rows: o = softmax(scale q k^T + bias, over the visible keys) v. Row r has counts[r] of
// the tokens of q [N,n,D], in turn, and its own keys[r] and values[r] [at least lengths[r],k,D], of
// which the first lengths[r] count. If causal, its tokens are its last keys: token t of counts[r]
// is at position p = lengths[r] - counts[r] + t and sees the keys s <= p, and s > p - window if
// window > 0; else every token sees all. bias, float32 [n,L]: bias[n,p-s] is added; causal only.
#define ROOTS_ATTENTION_ROWS_SCHEMAS(X)                                                      \
  X("attention_rows(Tensor q, Tensor[] keys, Tensor[] values, int[] lengths, int[] counts, " \
    "float scale, bool causal, int window, Tensor? bias) -> Tensor")

#define ROOTS_CPU_SCHEMAS(X)       \
  ROOTS_LINEAR_FEW_ROWS_SCHEMAS(X) \
  ROOTS_ATTENTION_ROWS_SCHEMAS(X)
