// bias_gelu: checks, allocation and registration; see csrc/schemas.h.

#include "../ops/bias_gelu.h"

#include "binding.h"
#include "column_sum.h"

namespace roots {
namespace {

void check_operands(const Tensor& x, const OptionalTensor& bias) {
  check(x.dim() >= 1, "x must have at least one dim; it is a scalar.");
  if (!bias.has_value()) return;
  check(bias->dim() == 1 && bias->size(0) == x.size(x.dim() - 1), "bias ", shape_of(*bias),
        " must have the size of the last dim of x ", shape_of(x), ".");
  check_same_dtype(*bias, "bias", x, "x");
  check_same_device(*bias, "bias", x, "x");
}

Tensor forward(const Tensor& x_any, const OptionalTensor& bias_any, bool tanh) {
  check_operands(x_any, bias_any);
  const Scope scope(x_any);
  const Tensor x = as_contiguous(x_any);
  const OptionalTensor bias = as_contiguous(bias_any);
  Tensor y = torch::stable::empty_like(x);
  BiasGeluForward arguments{};
  arguments.dtype = dtype_of(x, "x");
  if (y.numel() == 0) return y;
  arguments.x = x.const_data_ptr();
  arguments.bias = data_or_null(bias);
  arguments.y = y.mutable_data_ptr();
  arguments.width = x.size(x.dim() - 1);
  arguments.rows = x.numel() / arguments.width;
  arguments.tanh = tanh;
  check_launch(bias_gelu_forward(arguments, scope.stream()), "bias_gelu_forward");
  return y;
}

std::tuple<Tensor, Tensor> backward(const Tensor& dy_any, const Tensor& x_any,
                                    const OptionalTensor& bias_any, bool tanh) {
  check_operands(x_any, bias_any);
  check_same_shape(dy_any, "dy", x_any, "x");
  check_same_dtype(dy_any, "dy", x_any, "x");
  check_same_device(dy_any, "dy", x_any, "x");
  const Scope scope(x_any);
  const Tensor dy = as_contiguous(dy_any), x = as_contiguous(x_any);
  const OptionalTensor bias = as_contiguous(bias_any);
  Tensor dx = torch::stable::empty_like(x);
  BiasGeluBackward arguments{};
  arguments.dtype = dtype_of(x, "x");
  arguments.width = x.size(x.dim() - 1);
  arguments.rows = arguments.width == 0 ? 0 : x.numel() / arguments.width;
  const ColumnSum sum(x, arguments.rows, bias.has_value() ? arguments.width : 0);
  if (x.numel() == 0) return {dx, sum.tensor()};
  arguments.dy = dy.const_data_ptr();
  arguments.x = x.const_data_ptr();
  arguments.bias = data_or_null(bias);
  arguments.dx = dx.mutable_data_ptr();
  arguments.partial = sum.partial();
  arguments.dbias = sum.result();
  arguments.tanh = tanh;
  check_launch(bias_gelu_backward(arguments, scope.stream()), "bias_gelu_backward");
  return {dx, sum.tensor()};
}

}  // namespace
}  // namespace roots

ROOTS_REGISTER(m) {
  m.impl("bias_gelu_forward", TORCH_BOX(&roots::forward));
  m.impl("bias_gelu_backward", TORCH_BOX(&roots::backward));
}
