// Attention forward on tensor cores, float16 and bfloat16: Dao, "FlashAttention-2", 2023.
//
// A block of four warps owns kQueries queries of one head and walks over the tiles of keys that any
// of them sees. A warp holds 16 kM queries: scores, weights and output stay in its registers; with
// kM = 2 every fragment of K and V that is read from shared memory is used twice. While a tile is
// worked on, cp.async brings the next one into the other of two stages.
//
// The softmax is online, in base 2. The output is rescaled only when a row's largest score grew by
// more than a factor of 2^8 over the one in use: the weights are then at most 2^8, which float16
// holds, and the quotient by their sum is the same.

#include "attention_mma.cuh"

namespace roots {
namespace {

constexpr int kThreads = 128;
constexpr float kRescaleAbove = 8.0f;

// Per thread: output 16 kM kD / 32 floats, scores 16 kM kKeys / 32, fragments of the queries
// kM kD / 4 words where they are kept (else they are read anew for every tile).
//   D     queries  keys (with dropout)  output  scores  fragments  blocks an SM  shared memory
//   32      128      64                   32      64     16 (-)         3           24 KB
//   64      128      64                   64      64     32             2           48 KB
//   96      128      64 (32)              96      64      -             2           72 KB
//   128     128      64 (32)             128      64      -             2           96 KB
//   192      64      32                   96      16      -             2           72 KB
//   256      64      32                  128      16      -             2           96 KB
// Two blocks of 96 KB fit an SM of sm_90; on one of sm_80 one does.
template <int kD, bool kDropout>
struct ForwardShape {
  static constexpr int kM = kD <= 128 ? 2 : 1;
  static constexpr int kQueries = 64 * kM;
  static constexpr int kKeys = kD <= 64 || (kD <= 128 && !kDropout) ? 64 : 32;
  static constexpr bool kKeepQueries = kD == 64 || (kD == 32 && !kDropout);
  static constexpr int kBlocks = kD == 32 ? 3 : 2;
};

// Facts of the block are kept here rather than in registers: they are needed seldom.
template <class Shape, int kD>
struct ForwardShared {
  unsigned char queries[Shape::kQueries * kD * 2];
  unsigned char stages[2][2][Shape::kKeys * kD * 2];  // keys, values
  KeyRange ranges[Shape::kQueries];
  TileRange range;
  Place place;
};

template <int kM, int kN>
__device__ __forceinline__ void negate(float (&scores)[kM][kN][4]) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) scores[m][n][e] = -scores[m][n][e];
    }
  }
}

// Takes the largest scores of this tile into account: rescales output and sums if need be.
template <int kN, int kC>
__device__ __forceinline__ void raise_top(float (&top)[2], float (&sum)[2], float (&output)[kC][4],
                                          const float (&scores)[kN][4], float scale) {
  float largest[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    largest[half] = scores[0][2 * half];
#pragma unroll
    for (int n = 0; n < kN; ++n) {
      largest[half] = fmaxf(largest[half], fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
    }
    largest[half] = fmaxf(largest[half], __shfl_xor_sync(kFullMask, largest[half], 1));
    largest[half] = fmaxf(largest[half], __shfl_xor_sync(kFullMask, largest[half], 2));
  }
  const bool grew = (largest[0] - top[0]) * scale > kRescaleAbove ||
                    (largest[1] - top[1]) * scale > kRescaleAbove;
  if (!__any_sync(kFullMask, grew)) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float raised = fmaxf(top[half], largest[half]);
    const float base = raised == -INFINITY ? 0.0f : raised;
    const float factor = exp2_approximate((top[half] - base) * scale);
    top[half] = raised;
    sum[half] *= factor;
#pragma unroll
    for (int c = 0; c < kC; ++c) {
      output[c][2 * half] *= factor;
      output[c][2 * half + 1] *= factor;
    }
  }
}

// scores becomes 2^(scale (score - top)), and the sums grow by it.
template <int kN>
__device__ __forceinline__ void to_weights(const float (&top)[2], float (&sum)[2],
                                           float (&scores)[kN][4], float scale) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float base = top[half] == -INFINITY ? 0.0f : top[half] * scale;
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int e = 2 * half; e < 2 * half + 2; ++e) {
        scores[n][e] = exp2_approximate(fmaf(scores[n][e], scale, -base));
        sum[half] += scores[n][e];
      }
    }
  }
}

// Online softmax of the two rows of each m-tile that a thread has a part in.
template <int kM>
struct Softmax {
  float top[kM][2];  // the score that weights are relative to, in use; -inf: none yet
  float sum[kM][2];  // of the weights in this thread's columns
};

// Sums over the four threads of a row and writes the log-sum-exp. factors: what to multiply by.
template <int kM>
__device__ __forceinline__ void finish(float (&factors)[kM][2], const Softmax<kM>& softmax,
                                       float* lse, int count, float scale, float kept_scale) {
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = softmax.sum[m][half];
      sum += __shfl_xor_sync(kFullMask, sum, 1);
      sum += __shfl_xor_sync(kFullMask, sum, 2);
      const bool empty = softmax.top[m][half] == -INFINITY;
      factors[m][half] = empty ? 0.0f : kept_scale / sum;
      const int row = m * 16 + half * 8 + lane / 4;
      if (lane % 4 != 0 || row >= count) continue;
      lse[row] = empty ? -INFINITY : softmax.top[m][half] * scale * kLn2 + logf(sum);
    }
  }
}

// The positive factor of scores to the base of 2. A negative scale turns their order round
// (negate); a zero would make NaN of hidden ones.
__device__ __forceinline__ float scale_of(const AttentionProblem& problem) {
  return fmaxf(fabsf(problem.scale) * kLog2E, 1e-30f);
}

// Loads the queries, finds what they see, and tells the block: `shared.range`, `shared.place`.
template <class T, int kD, class Shape>
__device__ __forceinline__ void prepare(ForwardShared<Shape, kD>& shared,
                                        const AttentionForward& args, const Place& place) {
  const AttentionProblem& problem = args.problem;
  load_tile<T, kD, Shape::kQueries, kThreads>(
      shared.queries, rows_of<T>(args.q, place.row, place.head), args.q.token_stride, place.first,
      static_cast<int>(problem.queries), static_cast<int>(problem.head_size));
  copy_async_commit();
  find_ranges<Shape::kQueries, kThreads>(shared.ranges, problem, place.row, place.first);
  __syncthreads();
  const TileRange range = range_of_tile(shared.ranges, Shape::kQueries);
  if (threadIdx.x == 0) {
    shared.range = range;
    shared.place = place;
  }
  __syncthreads();
}

template <class T, int kD, class Shape>
__device__ __forceinline__ void load_keys(ForwardShared<Shape, kD>& shared,
                                          const AttentionForward& args, const T* k, const T* v,
                                          int first) {
  unsigned char (&stage)[2][Shape::kKeys * kD * 2] = shared.stages[first / Shape::kKeys % 2];
  const int keys = static_cast<int>(args.problem.keys);
  const int width = static_cast<int>(args.problem.head_size);
  load_tile<T, kD, Shape::kKeys, kThreads>(stage[0], k, args.k.token_stride, first, keys, width);
  load_tile<T, kD, Shape::kKeys, kThreads>(stage[1], v, args.v.token_stride, first, keys, width);
  copy_async_commit();
}

// Writes the warp's rows of o and lse; the tile of queries serves as its scratch.
template <class T, int kD, bool kDropout, class Shape>
__device__ __forceinline__ void write(ForwardShared<Shape, kD>& shared,
                                      const AttentionForward& args,
                                      const float (&output)[Shape::kM][kD / 8][4],
                                      const Softmax<Shape::kM>& softmax, float scale) {
  const AttentionProblem& problem = args.problem;
  const Place place = shared.place;
  const int warp_row = threadIdx.x / kWarpSize * 16 * Shape::kM;
  const int query = place.first + warp_row, width = static_cast<int>(problem.head_size);
  const int count = static_cast<int>(problem.queries) - query;
  float* lse = args.lse + (place.row * problem.heads + place.head) * problem.queries + query;
  const float kept_scale = kDropout ? attention_dropout_scale(problem.dropout_threshold) : 1.0f;
  float factors[Shape::kM][2];
  finish(factors, softmax, lse, count, scale, kept_scale);
  const int64_t stride = problem.heads * width;
  T* target = static_cast<T*>(args.o) + (place.row * problem.queries + query) * stride +
              static_cast<int64_t>(place.head) * width;
  store_rows<T, kD>(shared.queries + warp_row * Tile<kD>::kRowBytes, output, factors, target,
                    stride, count, width);
}

template <class T, int kD, bool kDropout>
__global__ void __launch_bounds__(kThreads, ForwardShape<kD, kDropout>::kBlocks)
    forward_kernel(AttentionForward args, int tiles) {
  using Shape = ForwardShape<kD, kDropout>;
  using Shared = ForwardShared<Shape, kD>;
  constexpr int kM = Shape::kM, kN = Shape::kKeys / 8;
  ROOTS_DYNAMIC_SHARED(Shared, shared);
  const AttentionProblem& problem = args.problem;
  const Place place = place_of_block(problem.heads, tiles, Shape::kQueries, problem.causal);
  prepare<T, kD>(*shared, args, place);
  const int key_head = place.head / static_cast<int>(problem.heads / problem.key_heads);
  const T* k = rows_of<T>(args.k, place.row, key_head);
  const T* v = rows_of<T>(args.v, place.row, key_head);
  int first = min(shared->range.lo, shared->range.hi) / Shape::kKeys * Shape::kKeys;
  if (first < shared->range.hi) load_keys<T, kD>(*shared, args, k, v, first);

  const int warp_row = threadIdx.x / kWarpSize * 16 * kM, lane_offset = Tile<kD>::lane_offset();
  uint32_t kept[kM][kD / 16][4];
  if (Shape::kKeepQueries) {
    copy_async_wait<0>();
    __syncthreads();
    load_fragments<kD>(kept, shared->queries, warp_row, lane_offset);
  }
  float output[kM][kD / 8][4];
  clear(output);
  Softmax<kM> softmax;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
    softmax.top[m][0] = softmax.top[m][1] = -INFINITY;
    softmax.sum[m][0] = softmax.sum[m][1] = 0.0f;
  }

  for (; first < shared->range.hi; first += Shape::kKeys) {
    copy_async_wait<0>();
    __syncthreads();
    const int next = first + Shape::kKeys;
    if (next < shared->range.hi) load_keys<T, kD>(*shared, args, k, v, next);
    const int lane = opaque(lane_offset);
    const auto& stage = shared->stages[first / Shape::kKeys % 2];
    const float scale = scale_of(problem);
    float scores[kM][kN][4];
    clear(scores);
    if constexpr (Shape::kKeepQueries) {
      multiply_kept<T, kD>(scores, kept, stage[0], 0, lane);
    } else {
      multiply_rows<T, kD>(scores, shared->queries, warp_row, stage[0], 0, lane);
    }
    if (problem.scale < 0.0f) negate(scores);
    if (shared->range.needs_mask(first, Shape::kKeys)) {
      hide_keys(scores, shared->ranges + warp_row, first, -INFINITY);
    }
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      raise_top(softmax.top[m], softmax.sum[m], output[m], scores[m], scale);
      to_weights(softmax.top[m], softmax.sum[m], scores[m], scale);
    }
    if (kDropout) drop_rows(scores, problem, shared->place, warp_row, first);
    uint32_t weights[kM][kN][2];
    pack_rows<T>(weights, scores);
    multiply_packed<T, kD>(output, weights, stage[1], 0, lane);
  }
  copy_async_wait<0>();
  __syncthreads();
  write<T, kD, kDropout>(*shared, args, output, softmax, scale_of(problem));
}

template <class T, int kD, bool kDropout>
Status launch_forward(const AttentionForward& args, Stream stream) {
  using Shape = ForwardShape<kD, kDropout>;
  const int64_t tiles = ceil_div(args.problem.queries, Shape::kQueries);
  return launch_blocks(forward_kernel<T, kD, kDropout>,
                       tiles * args.problem.heads * args.problem.batch, kThreads,
                       sizeof(ForwardShared<Shape, kD>), stream, args, static_cast<int>(tiles));
}

template <class T>
Status launch_forward(const AttentionForward& args, Stream stream) {
  return with_head_size(args.problem.head_size, [&](auto width) {
    constexpr int kD = decltype(width)::value;
    return args.problem.dropout_threshold != 0 ? launch_forward<T, kD, true>(args, stream)
                                               : launch_forward<T, kD, false>(args, stream);
  });
}

}  // namespace

Status attention_forward_mma(const AttentionForward& args, Stream stream) {
  return args.problem.dtype == DType::kFloat16 ? launch_forward<__half>(args, stream)
                                               : launch_forward<__nv_bfloat16>(args, stream);
}

}  // namespace roots
