// attention_rows: checks, the list of rows, and registration; see csrc/cpu/schemas.h.

#include "../../cpu/attention_rows.h"

#include "../binding.h"

namespace roots {
namespace {

using Tensors = std::vector<Tensor>;
using Integers = std::vector<int64_t>;

void check_queries(const Tensor& q) {
  check(q.scalar_type() == ScalarType::Float || q.scalar_type() == ScalarType::BFloat16,
        "q must be float32 or bfloat16.");
  check(q.dim() == 3 && q.size(2) >= 1, "q ", shape_of(q),
        " must have the 3 dims [token, head, head size].");
}

void check_tokens(const Tensor& tokens, const char* name, const Tensor& q, int64_t length) {
  check(tokens.dim() == 3 && tokens.size(2) == q.size(2), name, " ", shape_of(tokens),
        " must be [keys, key heads, head size] for q ", shape_of(q), ".");
  check_same_dtype(tokens, name, q, "q");
  check(tokens.size(1) >= 1 && q.size(1) % tokens.size(1) == 0, "q has ", q.size(1),
        " heads; that must be a multiple of the ", tokens.size(1), " heads of ", name, ".");
  check(length >= 0 && length <= tokens.size(0), "a length is ", length, "; ", name, " ",
        shape_of(tokens), " must have as many tokens.");
  check(tokens.stride(2) == 1 || tokens.size(2) == 1, "the last dim of ", name,
        " must be contiguous.");
}

RowTokens row_tokens(const Tensor& tokens) {
  return {tokens.const_data_ptr(), tokens.stride(0), tokens.stride(1)};
}

std::vector<AttentionRow> list_rows(const Tensor& q, const Tensors& keys, const Tensors& values,
                                    const Integers& lengths, const Integers& counts, bool causal) {
  const size_t rows = keys.size();
  check(values.size() == rows && lengths.size() == rows && counts.size() == rows, "there are ",
        rows, " keys, ", values.size(), " values, ", lengths.size(), " lengths and ",
        counts.size(), " counts; each row has one of each.");
  std::vector<AttentionRow> list;
  int64_t first = 0;
  for (size_t r = 0; r < rows; ++r) {
    check_tokens(keys[r], "keys", q, lengths[r]);
    check_tokens(values[r], "values", q, lengths[r]);
    check(keys[r].size(1) == keys[0].size(1) && values[r].size(1) == keys[0].size(1),
          "all keys and values must have as many heads.");
    check(counts[r] >= 0 && (!causal || counts[r] <= lengths[r]), "a row has ", counts[r],
          " tokens and ", lengths[r], " keys; its tokens must be among its keys.");
    list.push_back({row_tokens(keys[r]), row_tokens(values[r]), lengths[r], first, counts[r]});
    first += counts[r];
  }
  check(first == q.size(0), "the rows have ", first, " tokens; q has ", q.size(0), ".");
  return list;
}

void check_bias(const Tensor& bias, const Tensor& q, const Integers& lengths, bool causal,
                int64_t window) {
  check(causal, "bias needs causal rows: it is by the distance to a key before.");
  check(bias.scalar_type() == ScalarType::Float, "bias must be float32.");
  int64_t longest = 0;
  for (const int64_t length : lengths) longest = std::max(longest, length);
  if (window > 0) longest = std::min(longest, window);
  check(bias.dim() == 2 && bias.size(0) == q.size(1) && bias.size(1) >= longest, "bias ",
        shape_of(bias), " must be [heads, distances] with ", q.size(1), " heads and at least ",
        longest, " distances.");
}

Tensor attend(const Tensor& q_any, const Tensors& keys, const Tensors& values,
              const Integers& lengths, const Integers& counts, double scale, bool causal,
              int64_t window, const OptionalTensor& bias_any) {
  check_queries(q_any);
  const std::vector<AttentionRow> rows = list_rows(q_any, keys, values, lengths, counts, causal);
  if (bias_any.has_value()) check_bias(*bias_any, q_any, lengths, causal, window);
  const Tensor q = as_contiguous(q_any);
  const OptionalTensor bias = as_contiguous(bias_any);
  Tensor o = empty(q, {q.size(0), q.size(1), q.size(2)}, q.scalar_type());
  if (o.numel() == 0) return o;
  AttentionRows arguments{};
  arguments.dtype = dtype_of(q, "q");
  arguments.rows = rows.data();
  arguments.count = static_cast<int64_t>(rows.size());
  arguments.heads = q.size(1);
  arguments.key_heads = keys[0].size(1);
  arguments.head_size = q.size(2);
  arguments.scale = static_cast<float>(scale);
  arguments.causal = causal;
  arguments.window = window;
  arguments.q = q.const_data_ptr();
  arguments.bias = static_cast<const float*>(data_or_null(bias));
  arguments.distances = bias.has_value() ? bias->size(1) : 0;
  arguments.o = o.mutable_data_ptr();
  check_launch(attention_rows(arguments, nullptr), "attention_rows");
  return o;
}

}  // namespace
}  // namespace roots

ROOTS_REGISTER(m) { m.impl("attention_rows", TORCH_BOX(&roots::attend)); }
