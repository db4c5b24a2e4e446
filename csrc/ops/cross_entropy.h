// The stages of cross-entropy over a slice of the vocabulary; formulas in ../schemas.h.
#pragma once

#include "../common.h"

namespace roots {

struct SoftmaxStatistics {
  const void* logits;     // [rows, width], `stride` elements from row to row
  const int64_t* labels;  // [rows]
  float* row_max;         // [rows], as are the next
  float* sum_exp;
  float* picked;
  float* sum_logits;
  int64_t rows;
  int64_t width;  // at least 1
  int64_t stride;
  int64_t first;  // vocabulary id of column 0
  DType dtype;
};
ROOTS_LAUNCHER(softmax_statistics, SoftmaxStatistics)

struct SoftmaxGradient {
  const void* logits;  // [rows, width], `stride` elements from row to row
  void* gradient;      // likewise by `gradient_stride`; may be the logits
  const float* row_max;
  const float* sum_exp;
  const int64_t* labels;
  const float* row_weights;
  int64_t rows;
  int64_t width;  // at least 1
  int64_t stride;
  int64_t gradient_stride;
  int64_t first;
  int64_t vocab_size;
  float label_smoothing;
  float z_loss;
  DType dtype;
};
ROOTS_LAUNCHER(softmax_gradient, SoftmaxGradient)

}  // namespace roots
