// layer_norm: checks, allocation and registration; see csrc/schemas.h.

#include "../ops/layer_norm.h"

#include "norm.h"

namespace roots {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& x, const OptionalTensor& residual,
                                                   const Tensor& weight, const OptionalTensor& bias,
                                                   double epsilon, bool zero_centred) {
  const Scope scope(x);
  const NormTensors tensors = forward_tensors(x, residual, weight, bias);
  Tensor mean = torch::stable::empty_like(tensors.rstd);
  NormForward arguments = forward_arguments(tensors, epsilon, zero_centred);
  arguments.mean = float_data(mean);
  if (arguments.rows > 0) {
    check_launch(layer_norm_forward(arguments, scope.stream()), "layer_norm_forward");
  }
  return {tensors.y, tensors.stream, mean, tensors.rstd};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& dy, const OptionalTensor& dstream,
                                            const Tensor& stream, const Tensor& weight,
                                            const Tensor& mean_any, const Tensor& rstd,
                                            bool zero_centred, bool has_bias) {
  const Scope scope(stream);
  NormGradients tensors = backward_tensors(dy, dstream, stream, weight, rstd, has_bias ? 2 : 1);
  check_statistics(mean_any, "mean", stream);
  const Tensor mean = as_contiguous(mean_any);
  Tensor dbias = empty(stream, {has_bias ? stream.size(stream.dim() - 1) : 0}, ScalarType::Float);
  NormBackward arguments = backward_arguments(tensors, zero_centred);
  arguments.mean = const_float_data(mean);
  arguments.dbias = has_bias ? float_data(dbias) : nullptr;
  if (arguments.rows > 0) {
    check_launch(layer_norm_backward(arguments, scope.stream()), "layer_norm_backward");
  } else {
    torch::stable::zero_(tensors.dweight);
    torch::stable::zero_(dbias);
  }
  return {tensors.dx, tensors.dweight, dbias};
}

}  // namespace
}  // namespace roots

ROOTS_REGISTER(m) {
  m.impl("layer_norm_forward", TORCH_BOX(&roots::forward));
  m.impl("layer_norm_backward", TORCH_BOX(&roots::backward));
}
