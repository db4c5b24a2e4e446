// What the bindings of layer_norm and rms_norm share: checks and the filling of their arguments.
#pragma once

#include "../ops/norm.h"
#include "binding.h"

namespace roots {

// Operands of a norm must agree with x [..., H] in size, dtype and device.
inline void check_vector(const OptionalTensor& vector, const char* name, const Tensor& x,
                         const char* x_name) {
  if (!vector.has_value()) return;
  check(vector->dim() == 1 && vector->size(0) == x.size(x.dim() - 1), name, " ", shape_of(*vector),
        " must have the size of the last dim of ", x_name, " ", shape_of(x), ".");
  check_same_dtype(*vector, name, x, x_name);
  check_same_device(*vector, name, x, x_name);
}

inline void check_like(const OptionalTensor& tensor, const char* name, const Tensor& x,
                       const char* x_name) {
  if (!tensor.has_value()) return;
  check_same_shape(*tensor, name, x, x_name);
  check_same_dtype(*tensor, name, x, x_name);
  check_same_device(*tensor, name, x, x_name);
}

inline void check_rows(const Tensor& x, const char* name) {
  check(x.dim() >= 1 && x.size(x.dim() - 1) > 0, name, " ", shape_of(x),
        " must have a last dim with elements to normalise.");
}

inline Tensor empty_contiguous(const Tensor& x) {
  const std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  return torch::stable::new_empty(x, shape, x.scalar_type());
}

inline int64_t num_rows(const Tensor& x) { return x.numel() / x.size(x.dim() - 1); }

// Contiguous operands and the results of a forward pass.
struct NormTensors {
  Tensor x, weight;
  OptionalTensor residual, bias;
  Tensor y, stream, rstd;
};

inline NormTensors forward_tensors(const Tensor& x, const OptionalTensor& residual,
                                   const Tensor& weight, const OptionalTensor& bias) {
  check_rows(x, "x");
  check_like(residual, "residual", x, "x");
  check_vector(weight, "weight", x, "x");
  check_vector(bias, "bias", x, "x");
  return {as_contiguous(x),
          as_contiguous(weight),
          as_contiguous(residual),
          as_contiguous(bias),
          empty_contiguous(x),
          residual.has_value() ? empty_contiguous(x) : empty(x, {0}, x.scalar_type()),
          empty(x, {num_rows(x)}, ScalarType::Float)};
}

inline NormForward forward_arguments(const NormTensors& tensors, double epsilon,
                                     bool zero_centred) {
  NormForward arguments{};
  arguments.x = tensors.x.const_data_ptr();
  arguments.residual = data_or_null(tensors.residual);
  arguments.weight = tensors.weight.const_data_ptr();
  arguments.bias = data_or_null(tensors.bias);
  arguments.y = tensors.y.mutable_data_ptr();
  arguments.stream = tensors.residual.has_value() ? tensors.stream.mutable_data_ptr() : nullptr;
  arguments.rstd = float_data(tensors.rstd);
  arguments.rows = num_rows(tensors.x);
  arguments.hidden = tensors.x.size(tensors.x.dim() - 1);
  arguments.epsilon = static_cast<float>(epsilon);
  arguments.zero_centred = zero_centred;
  arguments.dtype = dtype_of(tensors.x, "x");
  return arguments;
}

// Contiguous operands and the results of a backward pass.
struct NormGradients {
  Tensor dy, stream, weight;
  OptionalTensor dstream;
  Tensor rstd, dx, dweight, partial;
};

inline void check_statistics(const Tensor& statistics, const char* name, const Tensor& stream) {
  check(statistics.scalar_type() == ScalarType::Float && statistics.dim() == 1 &&
            statistics.size(0) == num_rows(stream),
        name, " ", shape_of(statistics), " must be float32 with one number for each row of stream ",
        shape_of(stream), ".");
  check_same_device(statistics, name, stream, "stream");
}

// outputs: 2 with a gradient of the bias, else 1.
inline NormGradients backward_tensors(const Tensor& dy, const OptionalTensor& dstream,
                                      const Tensor& stream, const Tensor& weight,
                                      const Tensor& rstd, int64_t outputs) {
  check_rows(stream, "stream");
  check_like(dy, "dy", stream, "stream");
  check_like(dstream, "dstream", stream, "stream");
  check_vector(weight, "weight", stream, "stream");
  check_statistics(rstd, "rstd", stream);
  const int64_t hidden = stream.size(stream.dim() - 1), rows = num_rows(stream);
  return {as_contiguous(dy),
          as_contiguous(stream),
          as_contiguous(weight),
          as_contiguous(dstream),
          as_contiguous(rstd),
          empty_contiguous(stream),
          empty(stream, {hidden}, ScalarType::Float),
          empty(stream, {max_partial_rows(rows, hidden), outputs, hidden}, ScalarType::Float)};
}

inline NormBackward backward_arguments(const NormGradients& tensors, bool zero_centred) {
  NormBackward arguments{};
  arguments.dy = tensors.dy.const_data_ptr();
  arguments.dstream = data_or_null(tensors.dstream);
  arguments.stream = tensors.stream.const_data_ptr();
  arguments.weight = tensors.weight.const_data_ptr();
  arguments.rstd = const_float_data(tensors.rstd);
  arguments.dx = tensors.dx.mutable_data_ptr();
  arguments.dweight = float_data(tensors.dweight);
  arguments.partial = float_data(tensors.partial);
  arguments.rows = num_rows(tensors.stream);
  arguments.hidden = tensors.stream.size(tensors.stream.dim() - 1);
  arguments.zero_centred = zero_centred;
  arguments.dtype = dtype_of(tensors.stream, "stream");
  return arguments;
}

}  // namespace roots
