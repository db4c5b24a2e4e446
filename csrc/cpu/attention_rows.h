// Arguments of attention_rows: the contract between csrc/binding/cpu and the kernel. The op:
// csrc/cpu/schemas.h.
#pragma once

#include "../common.h"

namespace roots {

// The keys or values of a row, [at least `length`, key head, head size], the last dim contiguous;
// strides in elements.
struct RowTokens {
  const void* data;
  int64_t token_stride;
  int64_t head_stride;
};

struct AttentionRow {
  RowTokens keys;
  RowTokens values;
  int64_t length;  // keys that count; at least `tokens` if causal
  int64_t first;   // of its tokens in q and o
  int64_t tokens;
};

// Promised by the binding: heads % key_heads == 0, and query head n reads key head
// n / (heads / key_heads); head_size >= 1; with bias, causal and no distance beyond it.
struct AttentionRows {
  DType dtype;  // of q, keys, values and o: float32 or bfloat16
  const AttentionRow* rows;
  int64_t count;
  int64_t heads;
  int64_t key_heads;
  int64_t head_size;
  float scale;
  bool causal;
  int64_t window;  // <= 0: none
  const void* q;   // [tokens of all rows, heads, head_size] contiguous
  const float* bias;  // [heads, distances] contiguous, or null
  int64_t distances;
  void* o;  // as q
};
ROOTS_LAUNCHER(attention_rows, AttentionRows)

}  // namespace roots
