// scaled_masked_softmax: checks, allocation and registration; see csrc/schemas.h.

#include "../ops/scaled_masked_softmax.h"

#include "binding.h"

namespace roots {
namespace {

void check_scores(const Tensor& scores, const char* name) {
  check(scores.dim() == 4, name, " ", shape_of(scores),
        " must have four dims: batch, heads, queries and keys.");
  const int64_t rows = scores.size(0) * scores.size(1) * scores.size(2);
  check(rows < int64_t{1} << 31, name, " ", shape_of(scores), " has ", rows,
        " rows; it must have less than 2^31.");
}

MaskKind check_mask(const OptionalTensor& mask, const Tensor& scores) {
  if (!mask.has_value()) return MaskKind::kNone;
  bool fits = mask->dim() == 4 && mask->size(3) == scores.size(3);
  for (int64_t dim = 0; fits && dim < 3; ++dim) {
    fits = mask->size(dim) == 1 || mask->size(dim) == scores.size(dim);
  }
  check(fits, "mask ", shape_of(*mask), " must have the shape of scores ", shape_of(scores),
        ", or 1 in place of batch, heads or queries.");
  check_same_device(*mask, "mask", scores, "scores");
  if (mask->scalar_type() == ScalarType::Bool) return MaskKind::kVisible;
  check(mask->scalar_type() == scores.scalar_type(),
        "mask must be bool or have the dtype of scores.");
  return MaskKind::kAdded;
}

Tensor with_keys_side_by_side(const Tensor& mask) {
  return mask.size(3) <= 1 || mask.stride(3) == 1 ? mask : torch::stable::contiguous(mask);
}

Tensor forward(const Tensor& scores_any, const OptionalTensor& mask_any, double scale,
               bool causal) {
  check_scores(scores_any, "scores");
  ScaledMaskedSoftmaxForward arguments{};
  arguments.mask_kind = check_mask(mask_any, scores_any);
  arguments.dtype = dtype_of(scores_any, "scores");
  const Scope scope(scores_any);
  const Tensor scores = as_contiguous(scores_any);
  Tensor y = empty(scores, {scores.size(0), scores.size(1), scores.size(2), scores.size(3)},
                   scores.scalar_type());
  if (y.numel() == 0) return y;
  // Lives until the kernel is launched.
  const Tensor mask = mask_any.has_value() ? with_keys_side_by_side(*mask_any) : scores;
  if (mask_any.has_value()) {
    const auto stride = [&](int64_t dim) { return mask.size(dim) == 1 ? 0 : mask.stride(dim); };
    arguments.mask = mask.const_data_ptr();
    arguments.mask_batch_stride = stride(0);
    arguments.mask_head_stride = stride(1);
    arguments.mask_query_stride = stride(2);
  }
  arguments.scores = scores.const_data_ptr();
  arguments.y = y.mutable_data_ptr();
  arguments.heads = scores.size(1);
  arguments.queries = scores.size(2);
  arguments.keys = scores.size(3);
  arguments.rows = scores.size(0) * scores.size(1) * scores.size(2);
  arguments.scale = static_cast<float>(scale);
  arguments.causal = causal;
  check_launch(scaled_masked_softmax_forward(arguments, scope.stream()),
               "scaled_masked_softmax_forward");
  return y;
}

Tensor backward(const Tensor& dy_any, const Tensor& y_any, double scale) {
  check_scores(y_any, "y");
  check_same_shape(dy_any, "dy", y_any, "y");
  check_same_dtype(dy_any, "dy", y_any, "y");
  check_same_device(dy_any, "dy", y_any, "y");
  ScaledMaskedSoftmaxBackward arguments{};
  arguments.dtype = dtype_of(y_any, "y");
  const Scope scope(y_any);
  const Tensor dy = as_contiguous(dy_any), y = as_contiguous(y_any);
  Tensor dscores = empty(y, {y.size(0), y.size(1), y.size(2), y.size(3)}, y.scalar_type());
  if (y.numel() == 0) return dscores;
  arguments.dy = dy.const_data_ptr();
  arguments.y = y.const_data_ptr();
  arguments.dscores = dscores.mutable_data_ptr();
  arguments.keys = y.size(3);
  arguments.rows = y.numel() / arguments.keys;
  arguments.scale = static_cast<float>(scale);
  check_launch(scaled_masked_softmax_backward(arguments, scope.stream()),
               "scaled_masked_softmax_backward");
  return dscores;
}

}  // namespace
}  // namespace roots

ROOTS_REGISTER(m) {
  m.impl("scaled_masked_softmax_forward", TORCH_BOX(&roots::forward));
  m.impl("scaled_masked_softmax_backward", TORCH_BOX(&roots::backward));
}
