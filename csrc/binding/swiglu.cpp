// swiglu: checks, allocation and registration; see csrc/schemas.h.

#include "../ops/swiglu.h"

#include "binding.h"
#include "column_sum.h"

namespace roots {
namespace {

void check_operands(const Tensor& x, const OptionalTensor& bias) {
  check(x.dim() >= 1 && x.size(x.dim() - 1) % 2 == 0, "x ", shape_of(x),
        " must have an even last dim: gate and up are its halves.");
  if (!bias.has_value()) return;
  check(bias->dim() == 1 && bias->size(0) == x.size(x.dim() - 1), "bias ", shape_of(*bias),
        " must have the size of the last dim of x ", shape_of(x), ".");
  check_same_dtype(*bias, "bias", x, "x");
  check_same_device(*bias, "bias", x, "x");
}

Tensor forward(const Tensor& x_any, const OptionalTensor& bias_any) {
  check_operands(x_any, bias_any);
  const Scope scope(x_any);
  const Tensor x = as_contiguous(x_any);
  const OptionalTensor bias = as_contiguous(bias_any);
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() /= 2;
  Tensor y = torch::stable::new_empty(x, shape, x.scalar_type());
  if (y.numel() == 0) return y;
  SwigluForward arguments{};
  arguments.x = x.const_data_ptr();
  arguments.bias = data_or_null(bias);
  arguments.y = y.mutable_data_ptr();
  arguments.width = shape.back();
  arguments.rows = y.numel() / arguments.width;
  arguments.dtype = dtype_of(x, "x");
  check_launch(swiglu_forward(arguments, scope.stream()), "swiglu_forward");
  return y;
}

std::tuple<Tensor, Tensor> backward(const Tensor& dy_any, const Tensor& x_any,
                                    const OptionalTensor& bias_any) {
  check_operands(x_any, bias_any);
  check_same_dtype(dy_any, "dy", x_any, "x");
  check_same_device(dy_any, "dy", x_any, "x");
  check(dy_any.dim() == x_any.dim() && 2 * dy_any.numel() == x_any.numel() &&
            2 * dy_any.size(dy_any.dim() - 1) == x_any.size(x_any.dim() - 1),
        "dy ", shape_of(dy_any), " must have the shape of x ", shape_of(x_any),
        " with half of its last dim.");
  const Scope scope(x_any);
  const Tensor dy = as_contiguous(dy_any), x = as_contiguous(x_any);
  const OptionalTensor bias = as_contiguous(bias_any);
  Tensor dx = torch::stable::empty_like(x);
  SwigluBackward arguments{};
  arguments.dtype = dtype_of(x, "x");
  arguments.width = dy.size(dy.dim() - 1);
  arguments.rows = arguments.width == 0 ? 0 : dy.numel() / arguments.width;
  const ColumnSum sum(x, arguments.rows, bias.has_value() ? 2 * arguments.width : 0);
  if (x.numel() == 0) return {dx, sum.tensor()};
  arguments.dy = dy.const_data_ptr();
  arguments.x = x.const_data_ptr();
  arguments.bias = data_or_null(bias);
  arguments.dx = dx.mutable_data_ptr();
  arguments.partial = sum.partial();
  arguments.dbias = sum.result();
  check_launch(swiglu_backward(arguments, scope.stream()), "swiglu_backward");
  return {dx, sum.tensor()};
}

}  // namespace
}  // namespace roots

ROOTS_REGISTER(m) {
  m.impl("swiglu_forward", TORCH_BOX(&roots::forward));
  m.impl("swiglu_backward", TORCH_BOX(&roots::backward));
}
