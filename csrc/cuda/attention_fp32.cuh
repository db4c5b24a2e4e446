// What the float32 attention kernels share. Tensor cores would round float32 to 10 bits (TF32), so
// these use ordinary arithmetic: blocks of 256 threads work on tiles of 32 x 32 pairs.
//
// Thread 16 y + x has rows y and y + 16 of a tile. Of scores it holds columns x and x + 16, of a
// row of kD elements the elements 64 c + 4 x .. 64 c + 4 x + 3. So a row of scores belongs to half
// a warp, which sums it by shuffles and passes it on through shared memory without a barrier.
#pragma once

#include "attention_common.cuh"

namespace roots {
namespace {

constexpr int kTile = 32;
constexpr int kThreads = 256;

// Blocks an SM that the registers are cut for. Left to itself, ptxas spills some to fit more in.
template <int kD>
constexpr int kWideBlocks = kD <= 128 ? 2 : 1;

// Rows are 4 elements longer than they need be, so that those of a column are in different banks.
template <int kD>
struct WideTile {
  float rows[kTile][kD + 4];
};
using PairTile = float[kTile][kTile + 4];

template <int kD>
__device__ __forceinline__ void load_wide_tile(WideTile<kD>& tile, const float* rows,
                                               int64_t stride, int first, int end, int width) {
  for (int i = threadIdx.x; i < kTile * kD / 4; i += kThreads) {
    const int row = i / (kD / 4), column = i % (kD / 4) * 4;
    Pack<float, 4> pack{};
    if (first + row < end && column < width) {
      pack = load_pack<4>(rows + (first + row) * stride + column);
    }
    store_pack(&tile.rows[row][column], pack);
  }
}

// scores[i][j] = row y + 16 i of left times row x + 16 j of right. Four sums of every fourth
// product each are more exact than one, and do not wait for one another.
template <int kD>
__device__ __forceinline__ void multiply_wide(float (&scores)[2][2], const WideTile<kD>& left,
                                              const WideTile<kD>& right) {
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  float sums[16] = {};
#pragma unroll 2
  for (int d = 0; d < kD; d += 4) {
    const Pack<float, 4> a[2] = {load_pack<4>(&left.rows[y][d]),
                                 load_pack<4>(&left.rows[y + 16][d])};
    const Pack<float, 4> b[2] = {load_pack<4>(&right.rows[x][d]),
                                 load_pack<4>(&right.rows[x + 16][d])};
#pragma unroll
    for (int e = 0; e < 16; ++e) {
      sums[e] = fmaf(a[e / 8].values[e % 4], b[e / 4 % 2].values[e % 4], sums[e]);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    scores[i / 2][i % 2] = (sums[4 * i] + sums[4 * i + 1]) + (sums[4 * i + 2] + sums[4 * i + 3]);
  }
}

// acc += pairs times right, for the rows of this thread; pairs come from this half warp. The sum of
// a tile is made by itself: a few long sums are less exact.
template <int kD>
__device__ __forceinline__ void accumulate_wide(float (&acc)[2][kD / 64][4], const PairTile& pairs,
                                                const WideTile<kD>& right) {
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  float sums[2][kD / 64][4] = {};
#pragma unroll 4
  for (int j = 0; j < kTile; ++j) {
    const float weight[2] = {pairs[y][j], pairs[y + 16][j]};
#pragma unroll
    for (int c = 0; c < kD / 64; ++c) {
      const auto pack = load_pack<4>(&right.rows[j][c * 64 + x * 4]);
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        sums[e / 4][c][e % 4] = fmaf(weight[e / 4], pack.values[e % 4], sums[e / 4][c][e % 4]);
      }
    }
  }
#pragma unroll
  for (int e = 0; e < kD / 8; ++e)
    acc[e / (kD / 16)][e / 4 % (kD / 64)][e % 4] += sums[e / (kD / 16)][e / 4 % (kD / 64)][e % 4];
}

__device__ __forceinline__ void store_pairs(PairTile& pairs, const float (&values)[2][2]) {
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  pairs[y][x] = values[0][0];
  pairs[y][x + 16] = values[0][1];
  pairs[y + 16][x] = values[1][0];
  pairs[y + 16][x + 16] = values[1][1];
}

// Writes this thread's part of rows `first` on to [.., head, kD] contiguous.
template <int kD>
__device__ __forceinline__ void store_wide(float* target, int64_t stride, int count, int width,
                                           const float (&acc)[2][kD / 64][4],
                                           const float (&factors)[2]) {
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (y + 16 * i >= count) continue;
#pragma unroll
    for (int c = 0; c < kD / 64; ++c) {
      const int column = c * 64 + x * 4;
      if (column >= width) continue;
      Pack<float, 4> pack;
#pragma unroll
      for (int e = 0; e < 4; ++e) pack.values[e] = acc[i][c][e] * factors[i];
      store_pack(target + (y + 16 * i) * stride + column, pack);
    }
  }
}

template <int kD>
__device__ __forceinline__ void clear_wide(float (&acc)[2][kD / 64][4]) {
#pragma unroll
  for (int i = 0; i < 2 * (kD / 64) * 4; ++i) acc[i / (kD / 16)][i / 4 % (kD / 64)][i % 4] = 0.0f;
}

// What the kept weight of (query, key) is multiplied by, 0 if it is dropped.
__device__ __forceinline__ float dropout_factor(const AttentionProblem& problem, int64_t row,
                                                int head, int query, int key) {
  if (problem.dropout_threshold == 0) return 1.0f;
  const bool kept =
      attention_dropout_keeps(static_cast<uint64_t>(problem.dropout_keys[row]),
                              static_cast<uint32_t>(query + problem.keys - problem.queries),
                              static_cast<uint32_t>(problem.first_head + head),
                              static_cast<uint32_t>(key), problem.dropout_threshold);
  return kept ? attention_dropout_scale(problem.dropout_threshold) : 0.0f;
}

template <class F>
inline Status with_wide_head_size(int64_t head_size, const F& f) {
  if (head_size <= 64) return f(std::integral_constant<int, 64>{});
  if (head_size <= 128) return f(std::integral_constant<int, 128>{});
  return f(std::integral_constant<int, 256>{});
}

}  // namespace
}  // namespace roots
