// Attention forward in float32: online softmax over tiles of 32 keys, see attention_fp32.cuh.

#include "attention_fp32.cuh"

namespace roots {
namespace {

template <int kD>
struct ForwardShared {
  WideTile<kD> queries;
  WideTile<kD> keys;
  WideTile<kD> values;
  PairTile weights;
  KeyRange ranges[kTile];
};

// Online softmax of the two rows of a thread: the largest score so far, the sum of the weights.
struct WideSoftmax {
  float top[2];
  float sum[2];
};

// scores becomes the weights before dropout; acc and softmax follow the new largest score.
template <int kD>
__device__ __forceinline__ void to_weights(float (&scores)[2][2], WideSoftmax& softmax,
                                           float (&acc)[2][kD / 64][4]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float top = fmaxf(scores[i][0], scores[i][1]);
#pragma unroll
    for (int lanes = 8; lanes > 0; lanes /= 2) {
      top = fmaxf(top, __shfl_xor_sync(kFullMask, top, lanes));
    }
    top = fmaxf(top, softmax.top[i]);
    const float base = top == -INFINITY ? 0.0f : top, factor = expf(softmax.top[i] - base);
    scores[i][0] = expf(scores[i][0] - base);
    scores[i][1] = expf(scores[i][1] - base);
    float sum = scores[i][0] + scores[i][1];
#pragma unroll
    for (int lanes = 8; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(kFullMask, sum, lanes);
    softmax.top[i] = top;
    softmax.sum[i] = softmax.sum[i] * factor + sum;
#pragma unroll
    for (int e = 0; e < kD / 16; ++e) acc[i][e / 4][e % 4] *= factor;
  }
}

// The weights of one tile of keys, into shared.weights.
template <int kD>
__device__ __forceinline__ void weigh(ForwardShared<kD>& shared, const AttentionProblem& problem,
                                      const Place& place, int first, WideSoftmax& softmax,
                                      float (&acc)[2][kD / 64][4]) {
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  float scores[2][2];
  multiply_wide(scores, shared.queries, shared.keys);
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int key = first + x + e % 2 * 16;
    const KeyRange range = shared.ranges[y + e / 2 * 16];
    const bool seen = key >= range.lo && key < range.hi;
    scores[e / 2][e % 2] = seen ? scores[e / 2][e % 2] * problem.scale : -INFINITY;
  }
  to_weights<kD>(scores, softmax, acc);
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    scores[e / 2][e % 2] *= dropout_factor(problem, place.row, place.head,
                                           place.first + y + e / 2 * 16, first + x + e % 2 * 16);
  }
  store_pairs(shared.weights, scores);
  __syncwarp();
}

template <int kD>
__device__ __forceinline__ void write(const AttentionForward& args, const Place& place,
                                      const WideSoftmax& softmax,
                                      const float (&acc)[2][kD / 64][4]) {
  const AttentionProblem& problem = args.problem;
  const int count = static_cast<int>(problem.queries) - place.first;
  const int width = static_cast<int>(problem.head_size);
  float* lse = args.lse + (place.row * problem.heads + place.head) * problem.queries + place.first;
  float factors[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const bool empty = softmax.top[i] == -INFINITY;
    factors[i] = empty ? 0.0f : 1.0f / softmax.sum[i];
    const int row = threadIdx.x / 16 + i * 16;
    if (threadIdx.x % 16 != 0 || row >= count) continue;
    lse[row] = empty ? -INFINITY : softmax.top[i] + logf(softmax.sum[i]);
  }
  const int64_t stride = problem.heads * width;
  store_wide<kD>(static_cast<float*>(args.o) +
                     (place.row * problem.queries + place.first) * stride +
                     static_cast<int64_t>(place.head) * width,
                 stride, count, width, acc, factors);
}

template <int kD>
__global__ void __launch_bounds__(kThreads, kWideBlocks<kD>)
    forward_kernel(AttentionForward args, int tiles) {
  ROOTS_DYNAMIC_SHARED(ForwardShared<kD>, shared);
  const AttentionProblem& problem = args.problem;
  const Place place = place_of_block(problem.heads, tiles, kTile, problem.causal);
  const int keys = static_cast<int>(problem.keys), width = static_cast<int>(problem.head_size);
  const int key_head = place.head / static_cast<int>(problem.heads / problem.key_heads);
  load_wide_tile(shared->queries, rows_of<float>(args.q, place.row, place.head),
                 args.q.token_stride, place.first, static_cast<int>(problem.queries), width);
  find_ranges<kTile, kThreads>(shared->ranges, problem, place.row, place.first);
  __syncthreads();
  const TileRange range = range_of_tile(shared->ranges, kTile);
  float acc[2][kD / 64][4];
  clear_wide<kD>(acc);
  WideSoftmax softmax = {{-INFINITY, -INFINITY}, {0.0f, 0.0f}};
  for (int first = min(range.lo, range.hi); first < range.hi; first += kTile) {
    load_wide_tile(shared->keys, rows_of<float>(args.k, place.row, key_head), args.k.token_stride,
                   first, keys, width);
    load_wide_tile(shared->values, rows_of<float>(args.v, place.row, key_head), args.v.token_stride,
                   first, keys, width);
    __syncthreads();
    weigh(*shared, problem, place, first, softmax, acc);
    accumulate_wide<kD>(acc, shared->weights, shared->values);
    __syncthreads();
  }
  write<kD>(args, place, softmax, acc);
}

}  // namespace

Status attention_forward_fp32(const AttentionForward& args, Stream stream) {
  return with_wide_head_size(args.problem.head_size, [&](auto width) {
    constexpr int kD = decltype(width)::value;
    const int64_t tiles = ceil_div(args.problem.queries, kTile);
    return launch_blocks(forward_kernel<kD>, tiles * args.problem.heads * args.problem.batch,
                         kThreads, sizeof(ForwardShared<kD>), stream, args,
                         static_cast<int>(tiles));
  });
}

}  // namespace roots
