// y = softmax(scale * scores + mask) over the visible keys of every row.
#pragma once

#include "../common.h"

namespace roots {

enum class MaskKind : int { kNone = 0, kVisible = 1, kAdded = 2 };

struct ScaledMaskedSoftmaxForward {
  const void* scores;         // [rows, keys]; rows are [batch, heads, queries]
  void* y;                    // likewise
  const void* mask;           // bytes (kVisible) or the dtype of scores (kAdded), keys side by side
  int64_t mask_batch_stride;  // in elements, 0 where the mask is broadcast
  int64_t mask_head_stride;
  int64_t mask_query_stride;
  int64_t rows;  // less than 2^31
  int64_t heads;
  int64_t queries;
  int64_t keys;
  float scale;
  bool causal;  // query t sees keys up to t + keys - queries
  MaskKind mask_kind;
  DType dtype;
};
ROOTS_LAUNCHER(scaled_masked_softmax_forward, ScaledMaskedSoftmaxForward)

struct ScaledMaskedSoftmaxBackward {
  const void* dy;  // [rows, keys], as are the next
  const void* y;
  void* dscores;
  int64_t rows;  // less than 2^31
  int64_t keys;
  float scale;
  DType dtype;
};
ROOTS_LAUNCHER(scaled_masked_softmax_backward, ScaledMaskedSoftmaxBackward)

}  // namespace roots
