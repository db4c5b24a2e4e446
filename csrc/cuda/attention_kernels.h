// The parts of attention on a GPU; each is a launch of one kernel.
#pragma once

#include "../ops/attention.h"

namespace roots {

// float16 and bfloat16, on tensor cores.
Status attention_forward_mma(const AttentionForward& args, Stream stream);
Status attention_backward_keys_mma(const AttentionBackward& args, Stream stream);     // dk, dv
Status attention_backward_queries_mma(const AttentionBackward& args, Stream stream);  // dq

// float32, without tensor cores: TF32 would round the operands to 10 bits.
Status attention_forward_fp32(const AttentionForward& args, Stream stream);
Status attention_backward_keys_fp32(const AttentionBackward& args, Stream stream);
Status attention_backward_queries_fp32(const AttentionBackward& args, Stream stream);

// Before the others of backward: args.delta, and in args.tiles what every tile of queries sees.
Status attention_backward_prepare(const AttentionBackward& args, Stream stream);

// Queries of a tile in args.tiles, TileRange [B, ceil(T / size)]: as many as the registers of the
// kernel for dk and dv bear.
constexpr int attention_tile_of_queries(int64_t head_size, bool dropout) {
  if (head_size > 192) return 32;
  return dropout && head_size > 96 && head_size <= 128 ? 32 : 64;
}

}  // namespace roots
