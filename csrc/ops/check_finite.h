// The index of the first tensor that holds an infinity or NaN.
#pragma once

#include "../common.h"

namespace roots {

struct CheckedTensor {
  const void* values;
  int64_t size;   // elements, at least 1
  int64_t index;  // in the list
  DType dtype;
};

struct CheckFinite {
  const CheckedTensor* tensors;  // on the host
  int64_t count;
  int64_t* first;  // [1]; -1 before, and after if all is finite
};
ROOTS_LAUNCHER(check_finite, CheckFinite)

}  // namespace roots
