// What backward of attention needs first: delta = sum_d do o - dlse of every query and head, and
// which keys each tile of queries sees. The first is bound by memory: it reads do and o once.

#include "attention_common.cuh"

namespace roots {
namespace {

constexpr int kThreads = 256;

// Lanes of a warp that work on one query and head, 16 bytes each at a time. They and the elements
// of 16 bytes have sums of their own, so that these are short: an error of delta is one of all the
// gradients of its query.
constexpr int kLanes = 8;

template <class T>
__global__ void __launch_bounds__(kThreads) delta_kernel(AttentionBackward args) {
  const AttentionProblem& problem = args.problem;
  const int64_t heads = problem.heads, queries = problem.queries;
  const int64_t index =
      (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kLanes;  // of [B,T,N]
  const int64_t head = index % heads, t = index / heads % queries, row = index / heads / queries;
  float sums[kPackSize<T>] = {};
  if (row < problem.batch) {
    const T* grad_o = rows_of<T>(args.grad_o, row, head) + t * args.grad_o.token_stride;
    const T* o = rows_of<T>(args.o, row, head) + t * args.o.token_stride;
    for (int64_t d = threadIdx.x % kLanes * kPackSize<T>; d < problem.head_size;
         d += kLanes * kPackSize<T>) {
      const auto x = load_pack<kPackSize<T>>(grad_o + d), y = load_pack<kPackSize<T>>(o + d);
#pragma unroll
      for (int i = 0; i < kPackSize<T>; ++i) {
        sums[i] = fmaf(to_float(x.values[i]), to_float(y.values[i]), sums[i]);
      }
    }
  }
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kPackSize<T>; i += 4) {
    sum += (sums[i] + sums[i + 1]) + (sums[i + 2] + sums[i + 3]);
  }
#pragma unroll
  for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) {
    sum += __shfl_xor_sync(kFullMask, sum, lanes);
  }
  if (row >= problem.batch || threadIdx.x % kLanes != 0) return;
  const int64_t place = (row * heads + head) * queries + t;
  if (args.grad_lse != nullptr) sum -= args.grad_lse[place];
  // A query that sees nothing has no gradients, whatever that of its lse.
  args.delta[place] = args.lse[place] == -INFINITY ? 0.0f : sum;
}

// A warp for each tile.
__global__ void __launch_bounds__(kWarpSize)
    tiles_kernel(AttentionProblem problem, int tile_size, int tiles, TileRange* result) {
  const int64_t row = blockIdx.x / tiles, first = blockIdx.x % tiles * int64_t{tile_size};
  TileRange range = no_queries();
  for (int i = threadIdx.x; i < tile_size && first + i < problem.queries; i += kWarpSize) {
    range = joined(range, visible_keys(problem, row, first + i));
  }
  range = joined_over_warp(range);
  if (threadIdx.x == 0) result[blockIdx.x] = range;
}

}  // namespace

Status attention_backward_prepare(const AttentionBackward& args, Stream stream) {
  const AttentionProblem& problem = args.problem;
  const int64_t rows = problem.batch * problem.queries * problem.heads;
  const Status status = with_dtype(problem.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return launch_blocks(delta_kernel<T>, ceil_div(rows * kLanes, kThreads), kThreads, 0, stream,
                         args);
  });
  if (status != 0) return status;
  const int size = attention_tile_of_queries(problem.head_size, problem.dropout_threshold != 0);
  const int64_t tiles = ceil_div(problem.queries, size);
  return launch_blocks(tiles_kernel, tiles * problem.batch, kWarpSize, 0, stream, problem, size,
                       static_cast<int>(tiles), reinterpret_cast<TileRange*>(args.tiles));
}

}  // namespace roots
