// cross_entropy: checks, allocation and registration; see csrc/schemas.h.

#include "../ops/cross_entropy.h"

#include "binding.h"

namespace roots {
namespace {

void check_logits(const Tensor& logits) {
  check(logits.dim() == 2, "logits ", shape_of(logits),
        " must have two dims: tokens and vocabulary.");
}

void check_row_values(const Tensor& values, const char* name, ScalarType type,
                      const char* type_name, const Tensor& logits) {
  check(values.dim() == 1 && values.size(0) == logits.size(0), name, " ", shape_of(values),
        " must have one value for every row of logits ", shape_of(logits), ".");
  check(values.scalar_type() == type, name, " must be ", type_name, ".");
  check_same_device(values, name, logits, "logits");
}

bool has_contiguous_rows(const Tensor& logits) {
  return logits.size(1) <= 1 || logits.stride(1) == 1;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> statistics(const Tensor& logits_any,
                                                      const Tensor& labels_any, int64_t first) {
  check_logits(logits_any);
  check_row_values(labels_any, "labels", ScalarType::Long, "int64", logits_any);
  const Scope scope(logits_any);
  const Tensor logits =
      has_contiguous_rows(logits_any) ? logits_any : torch::stable::contiguous(logits_any);
  const Tensor labels = as_contiguous(labels_any);
  const int64_t rows = logits.size(0), width = logits.size(1);
  const auto row_values = [&] { return empty(logits, {rows}, ScalarType::Float); };
  Tensor row_max = row_values(), sum_exp = row_values(), picked = row_values(),
         sum_logits = row_values();
  SoftmaxStatistics arguments{};
  arguments.logits = logits.const_data_ptr();
  arguments.labels = static_cast<const int64_t*>(labels.const_data_ptr());
  arguments.row_max = float_data(row_max);
  arguments.sum_exp = float_data(sum_exp);
  arguments.picked = float_data(picked);
  arguments.sum_logits = float_data(sum_logits);
  arguments.rows = rows;
  arguments.width = width;
  arguments.stride = logits.stride(0);
  arguments.first = first;
  arguments.dtype = dtype_of(logits, "logits");
  if (width == 0) {
    torch::stable::fill_(row_max, -std::numeric_limits<double>::infinity());
    for (Tensor* zeros : {&sum_exp, &picked, &sum_logits}) torch::stable::zero_(*zeros);
  } else if (rows > 0) {
    check_launch(softmax_statistics(arguments, scope.stream()), "softmax_statistics");
  }
  return {row_max, sum_exp, picked, sum_logits};
}

// What the two forms of the gradient take besides logits and target.
struct Operands {
  Tensor row_max, sum_exp, labels, row_weights;
  int64_t first, vocab_size;
  double label_smoothing, z_loss;
};

void write_gradient(const Tensor& logits, Tensor& gradient, const Operands& operands) {
  check_row_values(operands.row_max, "row_max", ScalarType::Float, "float32", logits);
  check_row_values(operands.sum_exp, "sum_exp", ScalarType::Float, "float32", logits);
  check_row_values(operands.labels, "labels", ScalarType::Long, "int64", logits);
  check_row_values(operands.row_weights, "row_weights", ScalarType::Float, "float32", logits);
  if (logits.numel() == 0) return;
  check(operands.vocab_size >= operands.first + logits.size(1), "vocab_size ", operands.vocab_size,
        " must be at least first + width, ", operands.first, " + ", logits.size(1), ".");
  const Scope scope(logits);
  const Tensor row_max = as_contiguous(operands.row_max), sum_exp = as_contiguous(operands.sum_exp),
               labels = as_contiguous(operands.labels),
               row_weights = as_contiguous(operands.row_weights);
  SoftmaxGradient arguments{};
  arguments.logits = logits.const_data_ptr();
  arguments.gradient = gradient.mutable_data_ptr();
  arguments.row_max = const_float_data(row_max);
  arguments.sum_exp = const_float_data(sum_exp);
  arguments.labels = static_cast<const int64_t*>(labels.const_data_ptr());
  arguments.row_weights = const_float_data(row_weights);
  arguments.rows = logits.size(0);
  arguments.width = logits.size(1);
  arguments.stride = logits.stride(0);
  arguments.gradient_stride = gradient.stride(0);
  arguments.first = operands.first;
  arguments.vocab_size = operands.vocab_size;
  arguments.label_smoothing = static_cast<float>(operands.label_smoothing);
  arguments.z_loss = static_cast<float>(operands.z_loss);
  arguments.dtype = dtype_of(logits, "logits");
  check_launch(softmax_gradient(arguments, scope.stream()), "softmax_gradient");
}

void gradient_in_place(Tensor logits, const Tensor& row_max, const Tensor& sum_exp,
                       const Tensor& labels, const Tensor& row_weights, int64_t first,
                       int64_t vocab_size, double label_smoothing, double z_loss) {
  check_logits(logits);
  check(has_contiguous_rows(logits), "logits must have the columns of a row side by side, not ",
        logits.stride(1), " elements apart, to be overwritten; pass contiguous logits.");
  write_gradient(
      logits, logits,
      {row_max, sum_exp, labels, row_weights, first, vocab_size, label_smoothing, z_loss});
}

Tensor gradient(const Tensor& logits_any, const Tensor& row_max, const Tensor& sum_exp,
                const Tensor& labels, const Tensor& row_weights, int64_t first, int64_t vocab_size,
                double label_smoothing, double z_loss) {
  check_logits(logits_any);
  const Tensor logits =
      has_contiguous_rows(logits_any) ? logits_any : torch::stable::contiguous(logits_any);
  Tensor result = empty(logits, {logits.size(0), logits.size(1)}, logits.scalar_type());
  write_gradient(
      logits, result,
      {row_max, sum_exp, labels, row_weights, first, vocab_size, label_smoothing, z_loss});
  return result;
}

}  // namespace
}  // namespace roots

ROOTS_REGISTER(m) {
  m.impl("softmax_statistics", TORCH_BOX(&roots::statistics));
  m.impl("softmax_gradient_", TORCH_BOX(&roots::gradient_in_place));
  m.impl("softmax_gradient", TORCH_BOX(&roots::gradient));
}
