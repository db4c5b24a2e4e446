// attention: checks, allocation and registration; see csrc/schemas.h.

#include "../ops/attention.h"

#include <cmath>

#include "../philox.h"
#include "binding.h"

namespace roots {
namespace {

// What the caller gives besides the tensors of q's shape; owns what the kernels' arguments point
// to.
struct Options {
  OptionalTensor key_ranges;
  bool causal;
  int64_t window;
  double scale;
  double dropout_rate;
  OptionalTensor dropout_keys;
  int64_t first_head;
};

void check_head_size(int64_t size) {
#if defined(ROOTS_BACKEND_CPU)
  check(size >= 1, "the head size is ", size, "; it must be at least 1.");
#else
  check(size % 8 == 0 && size >= 32 && size <= 256, "the head size is ", size,
        "; it must be a multiple of 8 from 32 to 256.");
#endif
}

void check_operands(const Tensor& q, const Tensor& k, const Tensor& v) {
  check(q.dim() == 4 && k.dim() == 4 && v.dim() == 4, "q ", shape_of(q), ", k ", shape_of(k),
        " and v ", shape_of(v), " must have the 4 dims [batch, token, head, head size].");
  check_same_dtype(k, "k", q, "q");
  check_same_dtype(v, "v", q, "q");
  check_same_device(k, "k", q, "q");
  check_same_device(v, "v", q, "q");
  check_same_shape(v, "v", k, "k");
  check(k.size(0) == q.size(0), "k ", shape_of(k), " must have the batch size of q ", shape_of(q),
        ".");
  check(k.size(3) == q.size(3), "k ", shape_of(k), " must have the head size of q ", shape_of(q),
        ".");
  check(k.size(2) >= 1 && q.size(2) % k.size(2) == 0, "q has ", q.size(2),
        " heads; that must be a multiple of the ", k.size(2), " heads of k.");
  check(q.size(1) <= INT32_MAX && k.size(1) <= INT32_MAX, "q ", shape_of(q), " and k ", shape_of(k),
        " must have less than 2^31 tokens.");
  check_head_size(q.size(3));
}

void check_options(const Options& options, const Tensor& q, const Tensor& k) {
  check(!options.causal || k.size(1) >= q.size(1), "k has ", k.size(1), " tokens and q ", q.size(1),
        "; under a causal mask k must have at least as many as q.");
  check(options.dropout_rate >= 0.0 && options.dropout_rate < 1.0, "dropout_rate is ",
        options.dropout_rate, "; it must be at least 0 and less than 1.");
  check(options.dropout_rate == 0.0 || options.dropout_keys.has_value(), "dropout_rate is ",
        options.dropout_rate, ", so dropout_keys must be given.");
  if (options.key_ranges.has_value()) {
    const Tensor& ranges = *options.key_ranges;
    check(ranges.dim() == 3 && ranges.size(0) == q.size(0) && ranges.size(1) == q.size(1) &&
              ranges.size(2) == 2,
          "key_ranges ", shape_of(ranges), " must have the shape [batch, token, 2] for q ",
          shape_of(q), ".");
    check(ranges.scalar_type() == ScalarType::Int, "key_ranges must be int32.");
    check_same_device(ranges, "key_ranges", q, "q");
  }
  if (options.dropout_keys.has_value()) {
    const Tensor& keys = *options.dropout_keys;
    check(keys.dim() == 1 && keys.size(0) == q.size(0), "dropout_keys ", shape_of(keys),
          " must have one key for each of the ", q.size(0), " rows of q.");
    check(keys.scalar_type() == ScalarType::Long, "dropout_keys must be int64.");
    check_same_device(keys, "dropout_keys", q, "q");
  }
}

// The tensor itself if the kernels can read it in place, else a contiguous copy: a GPU reads rows
// in pieces of 16 bytes.
Tensor readable(const Tensor& tensor) {
  bool good = tensor.stride(3) == 1 || tensor.size(3) == 1;
#if !defined(ROOTS_BACKEND_CPU)
  const int64_t piece = tensor.scalar_type() == ScalarType::Float ? 4 : 8;
  good = good && reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
  for (int64_t dim = 0; dim < 3; ++dim) {
    good = good && (tensor.size(dim) == 1 || tensor.stride(dim) % piece == 0);
  }
#endif
  if (good) return tensor;
  return tensor.is_contiguous() ? torch::stable::clone(tensor) : torch::stable::contiguous(tensor);
}

AttentionInput input_of(const Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

// A new contiguous tensor; torch's empty_like would take over the strides.
Tensor empty_as(const Tensor& tensor) {
  return empty(tensor, {tensor.size(0), tensor.size(1), tensor.size(2), tensor.size(3)},
               tensor.scalar_type());
}

AttentionProblem problem_of(const Tensor& q, const Tensor& k, const Options& options) {
  AttentionProblem problem{};
  problem.dtype = dtype_of(q, "q");
  problem.batch = q.size(0);
  problem.queries = q.size(1);
  problem.keys = k.size(1);
  problem.heads = q.size(2);
  problem.key_heads = k.size(2);
  problem.head_size = q.size(3);
  problem.key_ranges = static_cast<const int32_t*>(data_or_null(options.key_ranges));
  problem.causal = options.causal;
  problem.window = options.window;
  problem.scale = static_cast<float>(options.scale);
  problem.dropout_threshold = attention_dropout_threshold(options.dropout_rate);
  problem.dropout_keys = static_cast<const int64_t*>(data_or_null(options.dropout_keys));
  problem.first_head = options.first_head;
  return problem;
}

bool is_empty(const Tensor& q, const Tensor& k) { return q.numel() == 0 || k.numel() == 0; }

std::tuple<Tensor, Tensor> forward(const Tensor& q_any, const Tensor& k_any, const Tensor& v_any,
                                   const OptionalTensor& key_ranges, bool causal, int64_t window,
                                   double scale, double dropout_rate,
                                   const OptionalTensor& dropout_keys, int64_t first_head) {
  check_operands(q_any, k_any, v_any);
  const Options options{as_contiguous(key_ranges),   causal,    window, scale, dropout_rate,
                        as_contiguous(dropout_keys), first_head};
  check_options(options, q_any, k_any);
  const Scope scope(q_any);
  const Tensor q = readable(q_any), k = readable(k_any), v = readable(v_any);
  Tensor o = empty_as(q);
  Tensor lse = empty(q, {q.size(0), q.size(2), q.size(1)}, ScalarType::Float);
  if (is_empty(q, k)) {
    torch::stable::zero_(o);
    torch::stable::fill_(lse, -INFINITY);
    return {o, lse};
  }
  AttentionForward arguments{};
  arguments.problem = problem_of(q, k, options);
  arguments.q = input_of(q);
  arguments.k = input_of(k);
  arguments.v = input_of(v);
  arguments.o = o.mutable_data_ptr();
  arguments.lse = float_data(lse);
  check_launch(attention_forward(arguments, scope.stream()), "attention_forward");
  return {o, lse};
}

void check_gradients(const Tensor& grad_o, const OptionalTensor& grad_lse, const Tensor& q,
                     const Tensor& o, const Tensor& lse) {
  check_same_shape(grad_o, "do", q, "q");
  check_same_shape(o, "o", q, "q");
  check_same_dtype(grad_o, "do", q, "q");
  check_same_dtype(o, "o", q, "q");
  check_same_device(grad_o, "do", q, "q");
  check_same_device(o, "o", q, "q");
  check_same_device(lse, "lse", q, "q");
  check(lse.dim() == 3 && lse.size(0) == q.size(0) && lse.size(1) == q.size(2) &&
            lse.size(2) == q.size(1) && lse.scalar_type() == ScalarType::Float,
        "lse ", shape_of(lse), " must be float32 [batch, head, token] for q ", shape_of(q), ".");
  if (!grad_lse.has_value()) return;
  check_same_shape(*grad_lse, "dlse", lse, "lse");
  check_same_device(*grad_lse, "dlse", q, "q");
  check(grad_lse->scalar_type() == ScalarType::Float, "dlse must be float32.");
}

std::tuple<Tensor, Tensor, Tensor> backward(
    const Tensor& grad_o_any, const OptionalTensor& grad_lse_any, const Tensor& q_any,
    const Tensor& k_any, const Tensor& v_any, const Tensor& o_any, const Tensor& lse_any,
    const OptionalTensor& key_ranges, bool causal, int64_t window, double scale,
    double dropout_rate, const OptionalTensor& dropout_keys, int64_t first_head) {
  check_operands(q_any, k_any, v_any);
  check_gradients(grad_o_any, grad_lse_any, q_any, o_any, lse_any);
  const Options options{as_contiguous(key_ranges),   causal,    window, scale, dropout_rate,
                        as_contiguous(dropout_keys), first_head};
  check_options(options, q_any, k_any);
  const Scope scope(q_any);
  const Tensor q = readable(q_any), k = readable(k_any), v = readable(v_any);
  const Tensor grad_o = readable(grad_o_any), o = readable(o_any), lse = as_contiguous(lse_any);
  const OptionalTensor grad_lse = as_contiguous(grad_lse_any);
  Tensor dq = empty_as(q), dk = empty_as(k), dv = empty_as(v);
  if (is_empty(q, k)) {
    torch::stable::zero_(dq);
    torch::stable::zero_(dk);
    torch::stable::zero_(dv);
    return {dq, dk, dv};
  }
  Tensor delta = empty(q, {q.size(0), q.size(2), q.size(1)}, ScalarType::Float);
  AttentionBackward arguments{};
  arguments.problem = problem_of(q, k, options);
  arguments.grad_o = input_of(grad_o);
  arguments.grad_lse = static_cast<const float*>(data_or_null(grad_lse));
  arguments.q = input_of(q);
  arguments.k = input_of(k);
  arguments.v = input_of(v);
  arguments.o = input_of(o);
  arguments.lse = const_float_data(lse);
  arguments.delta = float_data(delta);
#if !defined(ROOTS_BACKEND_CPU)
  Tensor tiles = empty(q, {q.size(0), (q.size(1) + 31) / 32, 4}, ScalarType::Int);
  arguments.tiles = static_cast<int32_t*>(tiles.mutable_data_ptr());
#endif
  arguments.dq = dq.mutable_data_ptr();
  arguments.dk = dk.mutable_data_ptr();
  arguments.dv = dv.mutable_data_ptr();
  check_launch(attention_backward(arguments, scope.stream()), "attention_backward");
  return {dq, dk, dv};
}

}  // namespace
}  // namespace roots

ROOTS_REGISTER(m) {
  m.impl("attention_forward", TORCH_BOX(&roots::forward));
  m.impl("attention_backward", TORCH_BOX(&roots::backward));
}
