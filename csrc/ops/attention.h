// Arguments of the attention kernels: the contract between csrc/binding/attention.cpp, which checks
// and allocates, and the kernels of every backend. The op: csrc/schemas.h.
//
// Promised by the binding: batch, queries, keys >= 1 (what is empty never reaches a kernel);
// heads % key_heads == 0, and query head n reads key head n / (heads / key_heads); the last
// dimension of every tensor is contiguous; for CUDA and the simulator every row of head_size
// elements starts at a multiple of 16 bytes and head_size is a multiple of 8 from 32 to 256; a CPU
// kernel takes any alignment and any head_size >= 1; with causal, keys >= queries.
#pragma once

#include "../common.h"

namespace roots {

// A tensor [batch, token, head, head_size] that is read; strides in elements, 0 too.
struct AttentionInput {
  const void* data;
  int64_t batch_stride;
  int64_t token_stride;
  int64_t head_stride;
};

struct AttentionProblem {
  DType dtype;                // of q, k, v, o and their gradients
  int64_t batch;              // B
  int64_t queries;            // T
  int64_t keys;               // S
  int64_t heads;              // N
  int64_t key_heads;          // K
  int64_t head_size;          // D
  const int32_t* key_ranges;  // [B,T,2] contiguous, (lo, hi) as the user gave them: maybe outside
                              // of [0, S], maybe lo >= hi; null: (0, S)
  bool causal;
  int64_t window;               // <= 0: none
  float scale;                  // of the scores, any sign
  uint32_t dropout_threshold;   // of 65536, see csrc/philox.h; 0: no dropout
  const int64_t* dropout_keys;  // [B]; null without dropout
  int64_t first_head;           // global head = first_head + n
};

struct AttentionForward {
  AttentionProblem problem;
  AttentionInput q;  // [B,T,N,D]
  AttentionInput k;  // [B,S,K,D]
  AttentionInput v;  // [B,S,K,D]
  void* o;           // [B,T,N,D] contiguous
  float* lse;        // [B,N,T] contiguous
};

// With z = keep / (1 - rate) (1 without dropout), p = exp(scale q k - lse), over the visible keys:
//   delta = sum_d do o - dlse     dp = z (do v^T)     ds = scale p (dp - delta)
//   dq = ds k                     dk = ds^T q         dv = (z p)^T do
struct AttentionBackward {
  AttentionProblem problem;
  AttentionInput grad_o;  // [B,T,N,D]
  const float* grad_lse;  // [B,N,T] contiguous, or null
  AttentionInput q;       // [B,T,N,D]
  AttentionInput k;       // [B,S,K,D]
  AttentionInput v;       // [B,S,K,D]
  AttentionInput o;       // [B,T,N,D]
  const float* lse;       // [B,N,T] contiguous
  float* delta;           // [B,N,T] contiguous: room for the kernel's use
  int32_t* tiles;         // [B, ceil(T / 32), 4]: the same, for a GPU; null on a CPU
  void* dq;               // [B,T,N,D] contiguous
  void* dk;               // [B,S,K,D] contiguous
  void* dv;               // [B,S,K,D] contiguous
};

ROOTS_LAUNCHER(attention_forward, AttentionForward)
ROOTS_LAUNCHER(attention_backward, AttentionBackward)

}  // namespace roots
