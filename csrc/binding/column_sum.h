// The gradient of a bias: a float32 sum over rows, with the scratch of its two stages.
#pragma once

#include "../ops/column_sum.h"
#include "binding.h"

namespace roots {

class ColumnSum {
 public:
  // Sums over the `columns` of the last dim of `like`, or nothing for 0 columns.
  ColumnSum(const Tensor& like, int64_t rows, int64_t columns)
      : tensor_(empty(like, {columns}, ScalarType::Float)) {
    if (columns == 0) return;
    if (rows == 0)
      torch::stable::zero_(tensor_);
    else
      partial_ = empty(like, {num_sum_blocks(rows), columns}, ScalarType::Float);
  }

  // [columns]: to be filled, zeros if there are no rows, empty without columns.
  const Tensor& tensor() const { return tensor_; }
  float* result() const { return partial_.has_value() ? float_data(tensor_) : nullptr; }
  float* partial() const { return partial_.has_value() ? float_data(*partial_) : nullptr; }

 private:
  Tensor tensor_;
  OptionalTensor partial_;
};

}  // namespace roots
