// Arguments of layer_norm and rms_norm: normalisation of rows with a residual added before.
//
//   stream = x + residual                  rounded to the dtype; x itself without a residual
//   y = normal(stream) * weight + bias     1 + weight instead of weight if zero_centred
//   normal(s) = (s - mean(s)) * rstd,      rstd = 1 / sqrt(mean((s - mean(s))^2) + epsilon)
// where mean(s) is taken as zero by rms_norm. With n = normal(stream) and g = dy * weight:
//   dx = rstd * (g - mean(g) - n * mean(g * n)) + dstream       without mean(g) in rms_norm
//   dweight = sum over rows of dy * n,  dbias = sum over rows of dy
#pragma once

#include <algorithm>

#include "column_sum.h"

namespace roots {

// Rows of the partial sums of dweight and dbias, [2 or 1, hidden] each. A CPU cuts the rows as
// column_sum.h says. On a GPU there is one for all rows that the same threads walk over; how many
// walk at once follows from the shape alone: two blocks for each of the 132 multiprocessors of an
// H100, and several in a block where rows are short. The simulator has few, so that they walk far
// in small tests; no block has more than 8 rows.
inline int64_t max_partial_rows(int64_t rows, int64_t hidden) {
#if defined(ROOTS_BACKEND_CPU)
  return num_sum_blocks(rows);
#elif defined(ROOTS_BACKEND_SIMULATOR)
  return std::min<int64_t>(rows, 8);
#else
  return std::min(rows, std::clamp<int64_t>((int64_t{1} << 20) / hidden, 264, 2112));
#endif
}

struct NormForward {
  const void* x;         // [rows, hidden]
  const void* residual;  // [rows, hidden], or null
  const void* weight;    // [hidden]
  const void* bias;      // [hidden], or null; null in rms_norm
  void* y;               // [rows, hidden]
  void* stream;          // [rows, hidden]; null without residual
  float* mean;           // [rows]; null in rms_norm
  float* rstd;           // [rows]
  int64_t rows;
  int64_t hidden;
  float epsilon;
  bool zero_centred;
  DType dtype;
};

struct NormBackward {
  const void* dy;       // [rows, hidden]
  const void* dstream;  // [rows, hidden], or null
  const void* stream;   // [rows, hidden]
  const void* weight;   // [hidden]
  const float* mean;    // [rows]; null in rms_norm
  const float* rstd;    // [rows]
  void* dx;             // [rows, hidden]
  float* dweight;       // [hidden]
  float* dbias;         // [hidden], or null; null in rms_norm
  float* partial;       // [max_partial_rows, dbias == nullptr ? 1 : 2, hidden]
  int64_t rows;
  int64_t hidden;
  bool zero_centred;
  DType dtype;
};

}  // namespace roots
