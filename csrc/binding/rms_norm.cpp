// rms_norm: checks, allocation and registration; see csrc/schemas.h.

#include "../ops/rms_norm.h"

#include "norm.h"

namespace roots {
namespace {

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const OptionalTensor& residual,
                                           const Tensor& weight, double epsilon,
                                           bool zero_centred) {
  const Scope scope(x);
  const NormTensors tensors = forward_tensors(x, residual, weight, std::nullopt);
  const NormForward arguments = forward_arguments(tensors, epsilon, zero_centred);
  if (arguments.rows > 0) {
    check_launch(rms_norm_forward(arguments, scope.stream()), "rms_norm_forward");
  }
  return {tensors.y, tensors.stream, tensors.rstd};
}

std::tuple<Tensor, Tensor> backward(const Tensor& dy, const OptionalTensor& dstream,
                                    const Tensor& stream, const Tensor& weight, const Tensor& rstd,
                                    bool zero_centred) {
  const Scope scope(stream);
  NormGradients tensors = backward_tensors(dy, dstream, stream, weight, rstd, 1);
  const NormBackward arguments = backward_arguments(tensors, zero_centred);
  if (arguments.rows > 0) {
    check_launch(rms_norm_backward(arguments, scope.stream()), "rms_norm_backward");
  } else {
    torch::stable::zero_(tensors.dweight);
  }
  return {tensors.dx, tensors.dweight};
}

}  // namespace
}  // namespace roots

ROOTS_REGISTER(m) {
  m.impl("rms_norm_forward", TORCH_BOX(&roots::forward));
  m.impl("rms_norm_backward", TORCH_BOX(&roots::backward));
}
