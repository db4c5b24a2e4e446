// Attention on a GPU: the kernels that a problem is for, in their order.

#include "attention_kernels.h"

namespace roots {

Status attention_forward(const AttentionForward& args, Stream stream) {
  return args.problem.dtype == DType::kFloat32 ? attention_forward_fp32(args, stream)
                                               : attention_forward_mma(args, stream);
}

// Every gradient is summed by one block in one order: no atomics, the same bits in every run.
Status attention_backward(const AttentionBackward& args, Stream stream) {
  const bool wide = args.problem.dtype == DType::kFloat32;
  Status status = attention_backward_prepare(args, stream);
  if (status != 0) return status;
  status =
      wide ? attention_backward_keys_fp32(args, stream) : attention_backward_keys_mma(args, stream);
  if (status != 0) return status;
  return wide ? attention_backward_queries_fp32(args, stream)
              : attention_backward_queries_mma(args, stream);
}

}  // namespace roots
