// linear_few_rows: checks, allocation and registration; see csrc/cpu/schemas.h.

#include "../../cpu/linear_few_rows.h"

#include "../binding.h"

namespace roots {
namespace {

WeightType weight_type_of(const Tensor& weight) {
  switch (weight.scalar_type()) {
    case ScalarType::Float:
      return WeightType::kFloat32;
    case ScalarType::BFloat16:
      return WeightType::kBFloat16;
    case ScalarType::Char:
      return WeightType::kInt8;
    default:
      raise("weight must be float32, bfloat16 or int8.");
  }
}

void check_operands(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                    const OptionalTensor& scale) {
  check(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::BFloat16,
        "x must be float32 or bfloat16.");
  check(x.dim() == 2 && weight.dim() == 2 && x.size(1) == weight.size(1), "x ", shape_of(x),
        " and weight ", shape_of(weight), " must be [rows, inputs] and [outputs, inputs].");
  const WeightType type = weight_type_of(weight);
  check(type != WeightType::kFloat32 || x.scalar_type() == ScalarType::Float,
        "a float32 weight needs float32 x.");
  check((type == WeightType::kInt8) == scale.has_value(),
        "scale must be given with an int8 weight, and only with it.");
  if (bias.has_value()) {
    check(bias->dim() == 1 && bias->size(0) == weight.size(0), "bias ", shape_of(*bias),
          " must have one number for each row of weight ", shape_of(weight), ".");
    check_same_dtype(*bias, "bias", x, "x");
  }
  if (scale.has_value()) {
    check(scale->dim() == 1 && scale->size(0) == weight.size(0), "scale ", shape_of(*scale),
          " must have one number for each row of weight ", shape_of(weight), ".");
    check(scale->scalar_type() == ScalarType::Float, "scale must be float32.");
  }
}

Tensor product(const Tensor& x_any, const Tensor& weight_any, const OptionalTensor& bias_any,
               const OptionalTensor& scale_any) {
  check_operands(x_any, weight_any, bias_any, scale_any);
  const Tensor x = as_contiguous(x_any), weight = as_contiguous(weight_any);
  const OptionalTensor bias = as_contiguous(bias_any), scale = as_contiguous(scale_any);
  Tensor y = empty(x, {x.size(0), weight.size(0)}, x.scalar_type());
  if (y.numel() == 0) return y;
  LinearFewRows arguments{};
  arguments.dtype = dtype_of(x, "x");
  arguments.weight_type = weight_type_of(weight);
  arguments.x = x.const_data_ptr();
  arguments.weight = weight.const_data_ptr();
  arguments.bias = data_or_null(bias);
  arguments.scale = static_cast<const float*>(data_or_null(scale));
  arguments.y = y.mutable_data_ptr();
  arguments.rows = x.size(0);
  arguments.inputs = x.size(1);
  arguments.outputs = weight.size(0);
  check_launch(linear_few_rows(arguments, nullptr), "linear_few_rows");
  return y;
}

}  // namespace
}  // namespace roots

ROOTS_REGISTER(m) { m.impl("linear_few_rows", TORCH_BOX(&roots::product)); }
