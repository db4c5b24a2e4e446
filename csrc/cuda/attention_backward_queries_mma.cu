// dq of attention on tensor cores, float16 and bfloat16. As in forward, a block of four warps owns
// queries of one head and walks over the tiles of keys that any of them sees; a warp holds 16 kM
// queries. With the log-sum-exp of forward the weights need no online softmax:
//   p = 2^(scale log2(e) q k - lse log2(e))     ds = p (z (do v) - delta)     dq = scale ds k

#include "attention_mma.cuh"

namespace roots {
namespace {

constexpr int kThreads = 128;

// Per thread: dq 16 kM kD / 32 floats, scores and their gradients 16 kM kKeys / 32 each. Queries
// and do are read anew from shared memory for every tile.
//   D     queries  keys  stages  dq   scores  blocks an SM  shared memory
//   32      128     64     2     32   2 x 64       2            32 KB
//   64      128     64     2     64   2 x 64       2            64 KB
//                   32 (dropout)      2 x 32                    48 KB
//   96      128     32     2     96   2 x 32       2            72 KB
//   128     128     32     2    128   2 x 32       2            96 KB
//   192      64     32     2     96   2 x 16       2            96 KB
//   256      64     32     1    128   2 x 16       2            96 KB
// With one stage a tile is awaited; the SM's other block works meanwhile.
template <int kWidth, bool kDrops>
struct QueriesShape {
  static constexpr int kD = kWidth;
  static constexpr bool kDropout = kDrops;
  static constexpr int kM = kD <= 128 ? 2 : 1;
  static constexpr int kQueries = 64 * kM;
  static constexpr int kKeys = kD <= 32 || (kD <= 64 && !kDropout) ? 64 : 32;
  static constexpr int kStages = kD <= 192 ? 2 : 1;
};

template <class Shape>
struct QueriesShared {
  unsigned char queries[Shape::kQueries * Shape::kD * 2];
  unsigned char grad_o[Shape::kQueries * Shape::kD * 2];
  unsigned char stages[Shape::kStages][2][Shape::kKeys * Shape::kD * 2];  // keys, values
  float lse[Shape::kQueries];  // to the base of 2; inf where nothing is seen
  float delta[Shape::kQueries];
  KeyRange ranges[Shape::kQueries];
  TileRange range;
  Place place;
};

// A query that sees nothing, or is none, gets an lse of inf, so that all its weights are 0.
template <class Shape>
__device__ __forceinline__ void load_statistics(QueriesShared<Shape>& shared,
                                                const AttentionBackward& args, const Place& place) {
  const AttentionProblem& problem = args.problem;
  const int64_t base = (place.row * problem.heads + place.head) * problem.queries;
  for (int i = threadIdx.x; i < Shape::kQueries; i += kThreads) {
    const int64_t query = place.first + i;
    const bool inside = query < problem.queries;
    const float lse = inside ? args.lse[base + query] : -INFINITY;
    shared.lse[i] = lse == -INFINITY ? INFINITY : lse * kLog2E;
    shared.delta[i] = inside ? args.delta[base + query] : 0.0f;
  }
}

// scores becomes the weights; lse is of the warp's rows.
template <int kM, int kN>
__device__ __forceinline__ void to_weights(float (&scores)[kM][kN][4], const float* lse,
                                           float scale) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float of_row = lse[m * 16 + half * 8 + threadIdx.x % kWarpSize / 4];
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; ++e) {
          scores[m][n][e] = exp2_approximate(fmaf(scores[m][n][e], scale, -of_row));
        }
      }
    }
  }
}

// weights becomes weights (kept_scale grad - delta).
template <int kM, int kN>
__device__ __forceinline__ void to_score_gradients(float (&weights)[kM][kN][4],
                                                   const float (&grad)[kM][kN][4],
                                                   const float* delta, float kept_scale) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float of_row = delta[m * 16 + half * 8 + threadIdx.x % kWarpSize / 4];
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; ++e) {
          weights[m][n][e] *= fmaf(grad[m][n][e], kept_scale, -of_row);
        }
      }
    }
  }
}

template <class T, class Shape>
__device__ __forceinline__ void prepare(QueriesShared<Shape>& shared, const AttentionBackward& args,
                                        const Place& place) {
  const AttentionProblem& problem = args.problem;
  const int queries = static_cast<int>(problem.queries),
            width = static_cast<int>(problem.head_size);
  load_tile<T, Shape::kD, Shape::kQueries, kThreads>(
      shared.queries, rows_of<T>(args.q, place.row, place.head), args.q.token_stride, place.first,
      queries, width);
  load_tile<T, Shape::kD, Shape::kQueries, kThreads>(
      shared.grad_o, rows_of<T>(args.grad_o, place.row, place.head), args.grad_o.token_stride,
      place.first, queries, width);
  copy_async_commit();
  load_statistics(shared, args, place);
  find_ranges<Shape::kQueries, kThreads>(shared.ranges, problem, place.row, place.first);
  __syncthreads();
  const TileRange range = range_of_tile(shared.ranges, Shape::kQueries);
  if (threadIdx.x == 0) {
    shared.range = range;
    shared.place = place;
  }
  __syncthreads();
}

template <class T, class Shape>
__device__ __forceinline__ void load_keys(QueriesShared<Shape>& shared,
                                          const AttentionBackward& args, const T* k, const T* v,
                                          int first) {
  auto& stage = shared.stages[first / Shape::kKeys % Shape::kStages];
  const int keys = static_cast<int>(args.problem.keys);
  const int width = static_cast<int>(args.problem.head_size);
  load_tile<T, Shape::kD, Shape::kKeys, kThreads>(stage[0], k, args.k.token_stride, first, keys,
                                                  width);
  load_tile<T, Shape::kD, Shape::kKeys, kThreads>(stage[1], v, args.v.token_stride, first, keys,
                                                  width);
  copy_async_commit();
}

// Makes sure that tile `first` is there, and starts the next one.
template <class T, class Shape>
__device__ __forceinline__ void await_keys(QueriesShared<Shape>& shared,
                                           const AttentionBackward& args, const T* k, const T* v,
                                           int first) {
  if (Shape::kStages == 1) {
    __syncthreads();
    load_keys<T>(shared, args, k, v, first);
  }
  copy_async_wait<0>();
  __syncthreads();
  const int next = first + Shape::kKeys;
  if (Shape::kStages == 2 && next < shared.range.hi) load_keys<T>(shared, args, k, v, next);
}

template <class T, class Shape>
__device__ __forceinline__ void write(QueriesShared<Shape>& shared, const AttentionBackward& args,
                                      const float (&dq)[Shape::kM][Shape::kD / 8][4]) {
  const AttentionProblem& problem = args.problem;
  const Place place = shared.place;
  const int warp_row = threadIdx.x / kWarpSize * 16 * Shape::kM;
  const int query = place.first + warp_row, width = static_cast<int>(problem.head_size);
  const int64_t stride = problem.heads * width;
  T* target = static_cast<T*>(args.dq) + (place.row * problem.queries + query) * stride +
              static_cast<int64_t>(place.head) * width;
  float factors[Shape::kM][2];
  fill(factors, problem.scale);
  store_rows<T, Shape::kD>(shared.queries + warp_row * Tile<Shape::kD>::kRowBytes, dq, factors,
                           target, stride, static_cast<int>(problem.queries) - query, width);
}

template <class T, class Shape>
__global__ void __launch_bounds__(kThreads, 2) queries_kernel(AttentionBackward args, int tiles) {
  using Shared = QueriesShared<Shape>;
  constexpr int kD = Shape::kD, kM = Shape::kM, kN = Shape::kKeys / 8;
  constexpr bool kDropout = Shape::kDropout;
  ROOTS_DYNAMIC_SHARED(Shared, shared);
  const AttentionProblem& problem = args.problem;
  const Place place = place_of_block(problem.heads, tiles, Shape::kQueries, problem.causal);
  prepare<T>(*shared, args, place);
  const int key_head = place.head / static_cast<int>(problem.heads / problem.key_heads);
  const T* k = rows_of<T>(args.k, place.row, key_head);
  const T* v = rows_of<T>(args.v, place.row, key_head);
  int first = min(shared->range.lo, shared->range.hi) / Shape::kKeys * Shape::kKeys;
  if (Shape::kStages == 2 && first < shared->range.hi) load_keys<T>(*shared, args, k, v, first);

  const int warp_row = threadIdx.x / kWarpSize * 16 * kM, lane_offset = Tile<kD>::lane_offset();
  float dq[kM][kD / 8][4];
  clear(dq);
  for (; first < shared->range.hi; first += Shape::kKeys) {
    await_keys<T>(*shared, args, k, v, first);
    const int lane = opaque(lane_offset);
    const auto& stage = shared->stages[first / Shape::kKeys % Shape::kStages];
    float scores[kM][kN][4], grad[kM][kN][4];
    clear(scores);
    multiply_rows<T, kD>(scores, shared->queries, warp_row, stage[0], 0, lane);
    to_weights(scores, shared->lse + warp_row, problem.scale * kLog2E);
    if (shared->range.needs_mask(first, Shape::kKeys)) {
      hide_keys(scores, shared->ranges + warp_row, first, 0.0f);
    }
    clear(grad);
    multiply_rows<T, kD>(grad, shared->grad_o, warp_row, stage[1], 0, lane);
    if (kDropout) drop_rows(grad, problem, shared->place, warp_row, first);
    const float kept_scale = kDropout ? attention_dropout_scale(problem.dropout_threshold) : 1.0f;
    to_score_gradients(scores, grad, shared->delta + warp_row, kept_scale);
    uint32_t packed[kM][kN][2];
    pack_rows<T>(packed, scores);
    multiply_packed<T, kD>(dq, packed, stage[0], 0, lane);
  }
  copy_async_wait<0>();
  __syncthreads();
  write<T>(*shared, args, dq);
}

template <class T, class Shape>
Status launch_queries(const AttentionBackward& args, Stream stream) {
  const int64_t tiles = ceil_div(args.problem.queries, Shape::kQueries);
  return launch_blocks(queries_kernel<T, Shape>, tiles * args.problem.heads * args.problem.batch,
                       kThreads, sizeof(QueriesShared<Shape>), stream, args,
                       static_cast<int>(tiles));
}

template <class T>
Status launch_queries(const AttentionBackward& args, Stream stream) {
  return with_head_size(args.problem.head_size, [&](auto width) {
    constexpr int kD = decltype(width)::value;
    return args.problem.dropout_threshold != 0
               ? launch_queries<T, QueriesShape<kD, true>>(args, stream)
               : launch_queries<T, QueriesShape<kD, false>>(args, stream);
  });
}

}  // namespace

Status attention_backward_queries_mma(const AttentionBackward& args, Stream stream) {
  return args.problem.dtype == DType::kFloat16 ? launch_queries<__half>(args, stream)
                                               : launch_queries<__nv_bfloat16>(args, stream);
}

}  // namespace roots
