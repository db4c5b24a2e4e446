// bias_dropout_add: checks, allocation and registration; see csrc/schemas.h.

#include "../ops/bias_dropout_add.h"

#include <algorithm>
#include <cmath>

#include "binding.h"
#include "column_sum.h"

namespace roots {
namespace {

void check_keys(const OptionalTensor& keys, double rate, const Tensor& x, const char* name) {
  check(x.dim() == 3, name, " ", shape_of(x), " must have 3 dims: rows, tokens, hidden.");
  check(rate >= 0.0 && rate < 1.0, "rate ", rate, " must be at least 0 and below 1.");
  if (!keys.has_value()) return;
  check(keys->scalar_type() == ScalarType::Long, "token_keys must be int64.");
  check(keys->dim() == 2 && keys->size(0) == x.size(0) && keys->size(1) == x.size(1), "token_keys ",
        shape_of(*keys), " must have one number for every token of ", name, " ", shape_of(x), ".");
  check_same_device(*keys, "token_keys", x, name);
}

// As roots/ops/dropout.py draws: the threshold is rounded half to even, and never drops everything.
Dropout dropout_of(const OptionalTensor& contiguous_keys, double rate) {
  Dropout dropout{};
  dropout.keys = static_cast<const int64_t*>(data_or_null(contiguous_keys));
  const double below = std::min(std::nearbyint(rate * 4294967296.0), 4294967295.0);
  dropout.threshold = static_cast<int32_t>(static_cast<int64_t>(below) - 2147483648);
  dropout.scale = static_cast<float>(1.0 / (1.0 - rate));
  return dropout;
}

Tensor forward(const Tensor& x_any, const OptionalTensor& bias_any,
               const OptionalTensor& residual_any, const OptionalTensor& keys_any, double rate) {
  check_keys(keys_any, rate, x_any, "x");
  if (bias_any.has_value()) {
    check(bias_any->dim() == 1 && bias_any->size(0) == x_any.size(2), "bias ", shape_of(*bias_any),
          " must have the size of the last dim of x ", shape_of(x_any), ".");
    check_same_dtype(*bias_any, "bias", x_any, "x");
    check_same_device(*bias_any, "bias", x_any, "x");
  }
  if (residual_any.has_value()) {
    check_same_shape(*residual_any, "residual", x_any, "x");
    check_same_dtype(*residual_any, "residual", x_any, "x");
    check_same_device(*residual_any, "residual", x_any, "x");
  }
  const Scope scope(x_any);
  const Tensor x = as_contiguous(x_any);
  const OptionalTensor bias = as_contiguous(bias_any), residual = as_contiguous(residual_any);
  const OptionalTensor keys = as_contiguous(keys_any);
  Tensor y = torch::stable::empty_like(x);
  BiasDropoutAddForward arguments{};
  arguments.dtype = dtype_of(x, "x");
  if (x.numel() == 0) return y;
  arguments.x = x.const_data_ptr();
  arguments.bias = data_or_null(bias);
  arguments.residual = data_or_null(residual);
  arguments.y = y.mutable_data_ptr();
  arguments.dropout = dropout_of(keys, rate);
  arguments.width = x.size(2);
  arguments.rows = x.numel() / arguments.width;
  check_launch(bias_dropout_add_forward(arguments, scope.stream()), "bias_dropout_add_forward");
  return y;
}

std::tuple<Tensor, Tensor> backward(const Tensor& dy_any, const OptionalTensor& keys_any,
                                    double rate, bool has_bias) {
  check_keys(keys_any, rate, dy_any, "dy");
  const Scope scope(dy_any);
  const Tensor dy = as_contiguous(dy_any);
  const OptionalTensor keys = as_contiguous(keys_any);
  const Tensor dx =
      keys.has_value() ? torch::stable::empty_like(dy) : empty(dy, {0}, dy.scalar_type());
  BiasDropoutAddBackward arguments{};
  arguments.dtype = dtype_of(dy, "dy");
  arguments.width = dy.size(2);
  arguments.rows = dy.size(0) * dy.size(1);
  const ColumnSum sum(dy, arguments.rows, has_bias ? arguments.width : 0);
  if (dy.numel() == 0 || (!keys.has_value() && !has_bias)) return {dx, sum.tensor()};
  arguments.dy = dy.const_data_ptr();
  arguments.dx = keys.has_value() ? dx.mutable_data_ptr() : nullptr;
  arguments.partial = sum.partial();
  arguments.dbias = sum.result();
  arguments.dropout = dropout_of(keys, rate);
  check_launch(bias_dropout_add_backward(arguments, scope.stream()), "bias_dropout_add_backward");
  return {dx, sum.tensor()};
}

}  // namespace
}  // namespace roots

ROOTS_REGISTER(m) {
  m.impl("bias_dropout_add_forward", TORCH_BOX(&roots::forward));
  m.impl("bias_dropout_add_backward", TORCH_BOX(&roots::backward));
}
