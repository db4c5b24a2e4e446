// dk and dv of attention on tensor cores, float16 and bfloat16. A block owns a tile of keys of one
// key head and walks over the tiles of queries that see any of them, of all query heads of the
// group. All is transposed, rows are keys:
//   p = 2^(scale log2(e) k q - lse log2(e))     ds = p (z (v do) - delta)
//   dv = (z p) do                               dk = scale ds q
//
// A pair of warps shares 16 kM keys. One warp makes p and holds dv, the other makes v do and holds
// dk, for which it gets p from the first by way of shared memory. So a warp has one accumulator of
// 16 kM rows instead of two, kM can be 2 up to a head size of 128, and every fragment of q and do
// that is read serves twice as many products. Both run the same instructions but for the part
// between the two products.

#include "attention_mma.cuh"

namespace roots {
namespace {

// Per thread: dk or dv 16 kM kD / 32 floats, scores 16 kM kQueries / 32.
//   D     keys  queries  threads  dk or dv  scores  blocks an SM  shared memory
//   32     64      64      128       32       64         3            33 KB
//   64     64      64      128       64       64         2            57 KB
//   96     64      64      128       96       64         2            81 KB
//   128    64      64      128      128       64         2           106 KB
//          64      32 (dropout)     128       32         2            69 KB
//   192    64      64      256       96       32         1           154 KB
//   256    64      32      256      128       16         1           133 KB
// Two blocks of 106 KB fit an SM of sm_90; on one of sm_80 one does.
template <int kWidth, bool kDrops>
struct KeysShape {
  static constexpr int kD = kWidth;
  static constexpr bool kDropout = kDrops;
  static constexpr int kM = kD <= 128 ? 2 : 1;
  static constexpr int kPairs = kD <= 128 ? 2 : 4;
  static constexpr int kKeys = kPairs * kM * 16;
  static constexpr int kQueries = attention_tile_of_queries(kD, kDropout);
  static constexpr int kThreads = kPairs * 64;
  static constexpr int kBlocks = kD <= 32 ? 3 : kD <= 128 ? 2 : 1;
};

// What a column of the scores needs, in each of two stages. lse is to the base of 2, and inf where
// the query sees nothing or is none, so that all its weights are 0.
template <class Shape>
struct ColumnStatistics {
  float lse[Shape::kQueries];
  float delta[Shape::kQueries];
  KeyRange ranges[Shape::kQueries];  // only if some pair is hidden
};

template <class Shape>
struct KeysShared {
  unsigned char keys[Shape::kKeys * Shape::kD * 2];
  unsigned char values[Shape::kKeys * Shape::kD * 2];
  unsigned char stages[2][2][Shape::kQueries * Shape::kD * 2];  // queries, do
  uint32_t weights[Shape::kPairs][Shape::kM * Shape::kQueries / 16][kWarpSize][4];
  ColumnStatistics<Shape> statistics[2];
};

// The tiles of queries that see a tile of keys, head after head.
struct Walk {
  int head;  // of the group
  int tile;
  int begin;  // tile
  int end;
};

// A tile of queries of one head, as it lies in shared memory.
struct QueryTile {
  int head;   // of the group
  int first;  // query
  int stage;
  bool masked;
};

template <class Shape>
__device__ __forceinline__ Walk start_walk(const AttentionProblem& problem, int first) {
  const QueryRange range = queries_that_may_see(problem, first, Shape::kKeys);
  const int tile = range.begin / Shape::kQueries;
  return {0, tile, tile, (range.end + Shape::kQueries - 1) / Shape::kQueries};
}

// Goes on to the next tile from walk.tile on that sees a key of the block; false: there is none.
// All lanes of a warp look at 32 tiles at once.
template <class Shape>
__device__ __forceinline__ bool find_tile(Walk& walk, const AttentionProblem& problem,
                                          const TileRange* tiles, int first) {
  const int group = static_cast<int>(problem.heads / problem.key_heads);
  for (; walk.head < group; ++walk.head, walk.tile = walk.begin) {
    if (problem.key_ranges == nullptr && walk.tile < walk.end) return true;
    for (; walk.tile < walk.end; walk.tile += kWarpSize) {
      const int tile = walk.tile + threadIdx.x % kWarpSize;
      const bool seen =
          tile < walk.end && tiles[tile].lo < first + Shape::kKeys && tiles[tile].hi > first;
      const unsigned found = __ballot_sync(kFullMask, seen);
      if (found == 0) continue;
      walk.tile += __ffs(found) - 1;
      return true;
    }
  }
  return false;
}

// Starts to copy the queries and do of a tile. Returns the statistic that this thread will put
// into shared memory once the stage is free: raw lse or delta of one query.
template <class T, class Shape>
__device__ __forceinline__ float load_queries(KeysShared<Shape>& shared,
                                              const AttentionBackward& args, const Place& place,
                                              const Walk& walk, int stage) {
  const AttentionProblem& problem = args.problem;
  const int queries = static_cast<int>(problem.queries),
            width = static_cast<int>(problem.head_size);
  const int group = static_cast<int>(problem.heads / problem.key_heads);
  const int head = place.head * group + walk.head, first = walk.tile * Shape::kQueries;
  load_tile<T, Shape::kD, Shape::kQueries, Shape::kThreads>(
      shared.stages[stage][0], rows_of<T>(args.q, place.row, head), args.q.token_stride, first,
      queries, width);
  load_tile<T, Shape::kD, Shape::kQueries, Shape::kThreads>(
      shared.stages[stage][1], rows_of<T>(args.grad_o, place.row, head), args.grad_o.token_stride,
      first, queries, width);
  copy_async_commit();
  const int thread = threadIdx.x, query = first + thread % Shape::kQueries;
  const bool of_lse = thread < Shape::kQueries;
  if (thread >= 2 * Shape::kQueries || query >= queries) return of_lse ? -INFINITY : 0.0f;
  const float* source = of_lse ? args.lse : args.delta;
  return source[(place.row * problem.heads + head) * problem.queries + query];
}

template <class Shape>
__device__ __forceinline__ void store_statistics(ColumnStatistics<Shape>& statistics,
                                                 const AttentionProblem& problem, int64_t row,
                                                 int tile, float value, bool masked) {
  const int thread = threadIdx.x, column = thread % Shape::kQueries;
  if (thread < Shape::kQueries) {
    statistics.lse[column] = value == -INFINITY ? INFINITY : value * kLog2E;
  } else if (thread < 2 * Shape::kQueries) {
    statistics.delta[column] = value;
  }
  if (!masked) return;
  find_ranges<Shape::kQueries, Shape::kThreads>(statistics.ranges, problem, row,
                                                tile * Shape::kQueries);
}

// scores becomes the weights: columns are queries.
template <int kM, int kN>
__device__ __forceinline__ void to_weights(float (&scores)[kM][kN][4], const float* lse,
                                           float scale) {
  const int column = threadIdx.x % 4 * 2;
#pragma unroll
  for (int n = 0; n < kN; ++n) {
    const auto columns = load_pack<2>(lse + n * 8 + column);
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        scores[m][n][e] = exp2_approximate(fmaf(scores[m][n][e], scale, -columns.values[e % 2]));
      }
    }
  }
}

// Where a column of 8 kN queries begins.
struct Columns {
  uint64_t row_key;
  uint32_t position;
  uint32_t head;
};

__device__ __forceinline__ Columns columns_of(const AttentionProblem& problem, const Place& place,
                                              const QueryTile& tile) {
  const int64_t head = place.head * (problem.heads / problem.key_heads) + tile.head;
  return {static_cast<uint64_t>(problem.dropout_keys[place.row]),
          static_cast<uint32_t>(tile.first + problem.keys - problem.queries),
          static_cast<uint32_t>(problem.first_head + head)};
}

// Marks dropped weights, already packed, by their sign: row r is key first + r, column c is query
// position
// columns.position + c. The lane of an even key makes the bits of the even column for itself and
// for the lane of the next key, that one those of the odd column.
template <int kM, int kN>
__device__ __forceinline__ void mark_dropped(uint32_t (&packed)[kM][kN][2], const Columns& columns,
                                             uint32_t threshold, int first) {
  const int lane = threadIdx.x % kWarpSize, odd = lane / 4 % 2;
  const unsigned own_halves = odd ? 0x7632 : 0x5410, other_halves = odd ? 0x5410 : 0x7632;
#pragma unroll
  for (int n = 0; n < kN; ++n) {
    const PhiloxBits bits =
        attention_dropout_bits(columns.row_key, columns.position + n * 8 + lane % 4 * 2 + odd,
                               columns.head, static_cast<uint32_t>(first) / 32, lane / 8);
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      // Words 2m and 2m + 1 are of the rows of m-tile m; a lone m-tile may be the second of 32
      // keys.
      const bool upper = kM == 1 && first % 32 != 0;
      const uint32_t low = upper ? bits.word[2] : bits.word[2 * m];
      const uint32_t high = upper ? bits.word[3] : bits.word[2 * m + 1];
      const uint32_t own = __byte_perm(low, high, own_halves);
      const uint32_t other = __shfl_xor_sync(kFullMask, __byte_perm(low, high, other_halves), 4);
      // Of the even column and the odd one; low halves are of the upper row.
      const uint32_t first_bits = odd ? other : own, second_bits = odd ? own : other;
      if ((first_bits & 0xffffu) < threshold) packed[m][n][0] ^= 0x8000u;
      if ((second_bits & 0xffffu) < threshold) packed[m][n][0] ^= 0x80000000u;
      if ((first_bits >> 16) < threshold) packed[m][n][1] ^= 0x8000u;
      if ((second_bits >> 16) < threshold) packed[m][n][1] ^= 0x80000000u;
    }
  }
}

// Both 16-bit halves: the sign bit cleared, or zero where it was set.
__device__ __forceinline__ uint32_t magnitudes(uint32_t pair) { return pair & 0x7fff7fffu; }
__device__ __forceinline__ uint32_t kept_of(uint32_t pair) {
  const uint32_t dropped = (pair >> 15 & 0x00010001u) * 0xffffu;
  return pair & ~dropped;
}

// Hands the packed weights to the other warp of the pair; takes the dropped ones out of them.
template <int kM, int kN, bool kDropout>
__device__ __forceinline__ void send_weights(uint32_t (&packed)[kM][kN][2],
                                             uint32_t (*shared)[kWarpSize][4]) {
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      const Pack<uint32_t, 4> pack = {
          {packed[m][n][0], packed[m][n][1], packed[m][n + 1][0], packed[m][n + 1][1]}};
      store_pack(shared[(m * kN + n) / 2][lane], pack);
    }
  }
  if constexpr (kDropout) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        packed[m][n][0] = kept_of(packed[m][n][0]);
        packed[m][n][1] = kept_of(packed[m][n][1]);
      }
    }
  }
}

// packed becomes ds / scale, from the gradients of the weights and the weights of the other warp.
template <class T, int kM, int kN, bool kDropout>
__device__ __forceinline__ void to_score_gradients(uint32_t (&packed)[kM][kN][2],
                                                   const float (&grad)[kM][kN][4],
                                                   const uint32_t (*shared)[kWarpSize][4],
                                                   const float* delta, float kept_scale) {
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int n = 0; n < kN; n += 2) {
    const auto left = load_pack<2>(delta + n * 8 + lane % 4 * 2);
    const auto right = load_pack<2>(delta + n * 8 + 8 + lane % 4 * 2);
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      const auto weights = load_pack<4>(shared[(m * kN + n) / 2][lane]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t pair = weights.values[i];
        const float2 p = unpack_pair<T>(magnitudes(pair));
        const auto& columns = i < 2 ? left : right;
        const float* dp = &grad[m][n + i / 2][i % 2 * 2];
        const float dp0 = kDropout && (pair & 0x8000u) != 0 ? 0.0f : dp[0] * kept_scale;
        const float dp1 = kDropout && (pair & 0x80000000u) != 0 ? 0.0f : dp[1] * kept_scale;
        packed[m][n + i / 2][i % 2] =
            pack_pair<T>(p.x * (dp0 - columns.values[0]), p.y * (dp1 - columns.values[1]));
      }
    }
  }
}

// The warp's part in a tile: acc += (z p) do, or acc += ds q / scale.
template <class T, class Shape>
__device__ __forceinline__ void work(float (&acc)[Shape::kM][Shape::kD / 8][4],
                                     KeysShared<Shape>& shared, const AttentionProblem& problem,
                                     const Place& place, const QueryTile& tile, bool makes_dk) {
  constexpr int kD = Shape::kD, kM = Shape::kM, kN = Shape::kQueries / 8;
  constexpr bool kDropout = Shape::kDropout;
  const int pair = threadIdx.x / 64, warp_row = pair * 16 * kM, barrier = 1 + pair;
  const int lane_offset = opaque(Tile<kD>::lane_offset());
  const auto& stage = shared.stages[tile.stage];
  const auto& statistics = shared.statistics[tile.stage];
  float scores[kM][kN][4];
  clear(scores);
  multiply_rows<T, kD>(scores, makes_dk ? shared.values : shared.keys, warp_row,
                       makes_dk ? stage[1] : stage[0], 0, lane_offset);
  uint32_t packed[kM][kN][2];
  if (makes_dk) {
    barrier_sync(barrier, 64);
    const float kept_scale = kDropout ? attention_dropout_scale(problem.dropout_threshold) : 1.0f;
    to_score_gradients<T, kM, kN, kDropout>(packed, scores, shared.weights[pair], statistics.delta,
                                            kept_scale);
  } else {
    to_weights(scores, statistics.lse, problem.scale * kLog2E);
    if (tile.masked) hide_queries(scores, statistics.ranges, place.first + warp_row);
    pack_rows<T>(packed, scores);
    if (kDropout) {
      mark_dropped(packed, columns_of(problem, place, tile), problem.dropout_threshold,
                   place.first + warp_row);
    }
    send_weights<kM, kN, kDropout>(packed, shared.weights[pair]);
    barrier_arrive(barrier, 64);
  }
  multiply_packed<T, kD>(acc, packed, makes_dk ? stage[0] : stage[1], 0, lane_offset);
}

// Writes the warp's rows of dk or dv; its rows of the keys or values serve as scratch.
template <class T, class Shape>
__device__ __forceinline__ void write(KeysShared<Shape>& shared, const AttentionBackward& args,
                                      const Place& place, bool makes_dk,
                                      const float (&acc)[Shape::kM][Shape::kD / 8][4]) {
  const AttentionProblem& problem = args.problem;
  const int warp_row = threadIdx.x / 64 * 16 * Shape::kM, key = place.first + warp_row;
  const int width = static_cast<int>(problem.head_size);
  const int64_t stride = problem.key_heads * width;
  T* target = static_cast<T*>(makes_dk ? args.dk : args.dv) +
              (place.row * problem.keys + key) * stride + static_cast<int64_t>(place.head) * width;
  float factors[Shape::kM][2];
  fill(factors, makes_dk ? problem.scale : attention_dropout_scale(problem.dropout_threshold));
  store_rows<T, Shape::kD>(
      (makes_dk ? shared.keys : shared.values) + warp_row * Tile<Shape::kD>::kRowBytes, acc,
      factors, target, stride, static_cast<int>(problem.keys) - key, width);
}

template <class T, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    keys_kernel(AttentionBackward args, int key_tiles, int query_tiles) {
  ROOTS_DYNAMIC_SHARED(KeysShared<Shape>, shared);
  const AttentionProblem& problem = args.problem;
  const Place place = place_of_block(problem.key_heads, key_tiles, Shape::kKeys, false);
  const TileRange* tiles = reinterpret_cast<const TileRange*>(args.tiles) + place.row * query_tiles;
  const int keys = static_cast<int>(problem.keys), width = static_cast<int>(problem.head_size);
  load_tile<T, Shape::kD, Shape::kKeys, Shape::kThreads>(
      shared->keys, rows_of<T>(args.k, place.row, place.head), args.k.token_stride, place.first,
      keys, width);
  load_tile<T, Shape::kD, Shape::kKeys, Shape::kThreads>(
      shared->values, rows_of<T>(args.v, place.row, place.head), args.v.token_stride, place.first,
      keys, width);
  copy_async_commit();
  // Alternates, so that each of an SM's four schedulers gets warps of both kinds.
  const bool makes_dk = (threadIdx.x / kWarpSize + blockIdx.x) % 2 != 0;
  float acc[Shape::kM][Shape::kD / 8][4];
  clear(acc);

  Walk walk = start_walk<Shape>(problem, place.first);
  bool more = find_tile<Shape>(walk, problem, tiles, place.first);
  float statistic = more ? load_queries<T>(*shared, args, place, walk, 0) : 0.0f;
  for (int stage = 0; more; stage ^= 1) {
    const QueryTile tile = {walk.head, walk.tile * Shape::kQueries, stage,
                            tiles[walk.tile].needs_mask(place.first, Shape::kKeys)};
    store_statistics(shared->statistics[stage], problem, place.row, walk.tile, statistic,
                     tile.masked);
    copy_async_wait<0>();
    __syncthreads();
    ++walk.tile;
    more = find_tile<Shape>(walk, problem, tiles, place.first);
    if (more) statistic = load_queries<T>(*shared, args, place, walk, stage ^ 1);
    work<T, Shape>(acc, *shared, problem, place, tile, makes_dk);
  }
  copy_async_wait<0>();
  __syncthreads();
  write<T>(*shared, args, place, makes_dk, acc);
}

template <class T, class Shape>
Status launch_keys(const AttentionBackward& args, Stream stream) {
  const AttentionProblem& problem = args.problem;
  const int64_t key_tiles = ceil_div(problem.keys, Shape::kKeys);
  const int64_t query_tiles = ceil_div(problem.queries, Shape::kQueries);
  return launch_blocks(keys_kernel<T, Shape>, key_tiles * problem.key_heads * problem.batch,
                       Shape::kThreads, sizeof(KeysShared<Shape>), stream, args,
                       static_cast<int>(key_tiles), static_cast<int>(query_tiles));
}

template <class T>
Status launch_keys(const AttentionBackward& args, Stream stream) {
  return with_head_size(args.problem.head_size, [&](auto width) {
    constexpr int kD = decltype(width)::value;
    return args.problem.dropout_threshold != 0 ? launch_keys<T, KeysShape<kD, true>>(args, stream)
                                               : launch_keys<T, KeysShape<kD, false>>(args, stream);
  });
}

}  // namespace

Status attention_backward_keys_mma(const AttentionBackward& args, Stream stream) {
  return args.problem.dtype == DType::kFloat16 ? launch_keys<__half>(args, stream)
                                               : launch_keys<__nv_bfloat16>(args, stream);
}

}  // namespace roots
