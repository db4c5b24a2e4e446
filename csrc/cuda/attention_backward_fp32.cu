// Attention backward in float32: a kernel for dk and dv, one for dq; see attention_fp32.cuh.

#include "attention_fp32.cuh"

namespace roots {
namespace {

// "Own" are the rows that a block writes gradients for, "other" those that it walks over.
template <int kD>
struct BackwardShared {
  WideTile<kD> own[2];    // keys and values, or queries and do
  WideTile<kD> other[2];  // queries and do, or keys and values
  PairTile weights;
  PairTile scores;  // their gradients
  KeyRange ranges[kTile];
  float lse[kTile];
  float delta[kTile];
};

// Ranges and statistics of 32 queries of a head.
template <int kD>
__device__ __forceinline__ void load_statistics(BackwardShared<kD>& shared,
                                                const AttentionBackward& args, int64_t row,
                                                int head, int first) {
  const AttentionProblem& problem = args.problem;
  find_ranges<kTile, kThreads>(shared.ranges, problem, row, first);
  const int64_t query = int64_t{first} + threadIdx.x;
  if (threadIdx.x >= kTile) return;
  const int64_t index = (row * problem.heads + head) * problem.queries + query;
  const float lse = query < problem.queries ? args.lse[index] : -INFINITY;
  shared.lse[threadIdx.x] = lse == -INFINITY ? INFINITY : lse;
  shared.delta[threadIdx.x] = query < problem.queries ? args.delta[index] : 0.0f;
}

template <int kD>
__device__ __forceinline__ void load_pair(WideTile<kD> (&tiles)[2], const AttentionInput& a,
                                          const AttentionInput& b, const Place& place, int64_t end,
                                          int64_t width) {
  load_wide_tile(tiles[0], rows_of<float>(a, place.row, place.head), a.token_stride, place.first,
                 static_cast<int>(end), static_cast<int>(width));
  load_wide_tile(tiles[1], rows_of<float>(b, place.row, place.head), b.token_stride, place.first,
                 static_cast<int>(end), static_cast<int>(width));
}

// Weights and score gradients (but for the scale) of a tile, into shared memory. kKeysOwn: rows
// are keys and columns queries, else the other way round.
template <int kD, bool kKeysOwn>
__device__ __forceinline__ void differentiate(BackwardShared<kD>& shared,
                                              const AttentionProblem& problem, const Place& queries,
                                              int first_key) {
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  float weights[2][2], grad[2][2];
  multiply_wide(weights, shared.own[0], shared.other[0]);
  multiply_wide(grad, shared.own[1], shared.other[1]);
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int row = y + e / 2 * 16, column = x + e % 2 * 16;
    const int query = kKeysOwn ? column : row, key = first_key + (kKeysOwn ? row : column);
    const KeyRange range = shared.ranges[query];
    const bool seen = key >= range.lo && key < range.hi;
    const float weight =
        seen ? expf(fmaf(weights[e / 2][e % 2], problem.scale, -shared.lse[query])) : 0.0f;
    const float factor =
        dropout_factor(problem, queries.row, queries.head, queries.first + query, key);
    weights[e / 2][e % 2] = weight * factor;
    grad[e / 2][e % 2] = weight * fmaf(grad[e / 2][e % 2], factor, -shared.delta[query]);
  }
  if (kKeysOwn) store_pairs(shared.weights, weights);
  store_pairs(shared.scores, grad);
  __syncwarp();
}

template <int kD>
__device__ __forceinline__ void write(void* target, const Place& place, int64_t tokens,
                                      int64_t heads, int64_t width, float factor,
                                      const float (&acc)[2][kD / 64][4]) {
  const int64_t stride = heads * width;
  const float factors[2] = {factor, factor};
  store_wide<kD>(static_cast<float*>(target) + (place.row * tokens + place.first) * stride +
                     place.head * width,
                 stride, static_cast<int>(tokens) - place.first, static_cast<int>(width), acc,
                 factors);
}

template <int kD>
__global__ void __launch_bounds__(kThreads, kWideBlocks<kD>)
    keys_kernel(AttentionBackward args, int tiles) {
  ROOTS_DYNAMIC_SHARED(BackwardShared<kD>, shared);
  const AttentionProblem& problem = args.problem;
  const Place place = place_of_block(problem.key_heads, tiles, kTile, false);
  const int group = static_cast<int>(problem.heads / problem.key_heads);
  const QueryRange range = queries_that_may_see(problem, place.first, kTile);
  load_pair(shared->own, args.k, args.v, place, problem.keys, problem.head_size);
  float dk[2][kD / 64][4], dv[2][kD / 64][4];
  clear_wide<kD>(dk);
  clear_wide<kD>(dv);
  for (int head = place.head * group; head < place.head * group + group; ++head) {
    for (int first = range.begin; first < range.end; first += kTile) {
      load_statistics(*shared, args, place.row, head, first);
      __syncthreads();
      const TileRange seen = range_of_tile(shared->ranges, kTile);
      const Place queries = {place.row, head, first};
      if (seen.lo < place.first + kTile && seen.hi > place.first) {
        load_pair(shared->other, args.q, args.grad_o, queries, problem.queries, problem.head_size);
        __syncthreads();
        differentiate<kD, true>(*shared, problem, queries, place.first);
        accumulate_wide<kD>(dv, shared->weights, shared->other[1]);
        accumulate_wide<kD>(dk, shared->scores, shared->other[0]);
      }
      __syncthreads();
    }
  }
  write<kD>(args.dk, place, problem.keys, problem.key_heads, problem.head_size, problem.scale, dk);
  write<kD>(args.dv, place, problem.keys, problem.key_heads, problem.head_size, 1.0f, dv);
}

template <int kD>
__global__ void __launch_bounds__(kThreads, kWideBlocks<kD>)
    queries_kernel(AttentionBackward args, int tiles) {
  ROOTS_DYNAMIC_SHARED(BackwardShared<kD>, shared);
  const AttentionProblem& problem = args.problem;
  const Place place = place_of_block(problem.heads, tiles, kTile, problem.causal);
  const int key_head = place.head / static_cast<int>(problem.heads / problem.key_heads);
  load_pair(shared->own, args.q, args.grad_o, place, problem.queries, problem.head_size);
  load_statistics(*shared, args, place.row, place.head, place.first);
  __syncthreads();
  const TileRange range = range_of_tile(shared->ranges, kTile);
  float dq[2][kD / 64][4];
  clear_wide<kD>(dq);
  for (int first = min(range.lo, range.hi); first < range.hi; first += kTile) {
    load_pair(shared->other, args.k, args.v, {place.row, key_head, first}, problem.keys,
              problem.head_size);
    __syncthreads();
    differentiate<kD, false>(*shared, problem, place, first);
    accumulate_wide<kD>(dq, shared->scores, shared->other[0]);
    __syncthreads();
  }
  write<kD>(args.dq, place, problem.queries, problem.heads, problem.head_size, problem.scale, dq);
}

}  // namespace

Status attention_backward_keys_fp32(const AttentionBackward& args, Stream stream) {
  return with_wide_head_size(args.problem.head_size, [&](auto width) {
    constexpr int kD = decltype(width)::value;
    const int64_t tiles = ceil_div(args.problem.keys, kTile);
    return launch_blocks(keys_kernel<kD>, tiles * args.problem.key_heads * args.problem.batch,
                         kThreads, sizeof(BackwardShared<kD>), stream, args,
                         static_cast<int>(tiles));
  });
}

Status attention_backward_queries_fp32(const AttentionBackward& args, Stream stream) {
  return with_wide_head_size(args.problem.head_size, [&](auto width) {
    constexpr int kD = decltype(width)::value;
    const int64_t tiles = ceil_div(args.problem.queries, kTile);
    return launch_blocks(queries_kernel<kD>, tiles * args.problem.heads * args.problem.batch,
                         kThreads, sizeof(BackwardShared<kD>), stream, args,
                         static_cast<int>(tiles));
  });
}

}  // namespace roots
