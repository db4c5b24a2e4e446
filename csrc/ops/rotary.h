// Rotation of pairs of every head by the angles of its token; y may be x.
#pragma once

#include "../common.h"

namespace roots {

// Distances in elements from one row, token and head to the next; the last dim has stride 1.
struct HeadStrides {
  int64_t row, token, head;
};

struct Rotary {
  const void* x;  // [rows, tokens, heads, head_size]
  void* y;
  HeadStrides x_strides;
  HeadStrides y_strides;
  const float* cos;  // [table_rows, angles]
  const float* sin;
  const int64_t* positions;  // [rows, tokens], rows of the tables; null: by the token, see below
  bool table_of_rows;        // without positions: row b * tokens + t of the tables, else row t
  int64_t rows, tokens, heads, head_size;
  int64_t angles;
  int64_t table_rows;
  bool interleaved;  // pairs (2i, 2i + 1), else (i, i + angles)
  bool inverse;      // by the negative angles
  DType dtype;
};
ROOTS_LAUNCHER(rotary, Rotary)

}  // namespace roots
