// What all attention kernels share: which keys a query sees, places of blocks, launches.
#pragma once

#include <type_traits>

#include "../ops/attention.h"
#include "../philox.h"
#include "attention_kernels.h"
#include "device.cuh"

namespace roots {
namespace {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

template <class T>
__device__ __forceinline__ const T* rows_of(const AttentionInput& input, int64_t row,
                                            int64_t head) {
  return static_cast<const T*>(input.data) + row * input.batch_stride + head * input.head_stride;
}

// ---- visibility ----

// Keys lo <= s < hi.
struct KeyRange {
  int lo;
  int hi;
};

// The keys that query t of a row sees: every kind of mask is an interval. Empty: (INT_MAX, 0).
__device__ __forceinline__ KeyRange visible_keys(const AttentionProblem& problem, int64_t row,
                                                 int64_t t) {
  int64_t lo = 0, hi = problem.keys;
  if (problem.key_ranges != nullptr) {
    const int32_t* range = problem.key_ranges + (row * problem.queries + t) * 2;
    lo = max(lo, int64_t{range[0]});
    hi = min(hi, int64_t{range[1]});
  }
  const int64_t diagonal = t + problem.keys - problem.queries;
  if (problem.causal) hi = min(hi, diagonal + 1);
  if (problem.window > 0) lo = max(lo, diagonal - problem.window + 1);
  if (lo >= hi) return {INT32_MAX, 0};
  return {static_cast<int>(lo), static_cast<int>(hi)};
}

// Over some queries: outside of [lo, hi) no key is seen by any; within [all_lo, all_hi) every key
// is seen by all.
struct TileRange {
  int lo;
  int hi;
  int all_lo;
  int all_hi;

  __device__ __forceinline__ bool needs_mask(int first, int count) const {
    return first < all_lo || first + count > all_hi;
  }
};

__device__ __forceinline__ TileRange no_queries() { return {INT32_MAX, 0, 0, INT32_MAX}; }

__device__ __forceinline__ TileRange joined(const TileRange& tile, const KeyRange& range) {
  return {min(tile.lo, range.lo), max(tile.hi, range.hi), max(tile.all_lo, range.lo),
          min(tile.all_hi, range.hi)};
}

__device__ __forceinline__ TileRange joined_over_warp(TileRange tile) {
#pragma unroll
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) {
    tile.lo = min(tile.lo, __shfl_xor_sync(kFullMask, tile.lo, lanes));
    tile.hi = max(tile.hi, __shfl_xor_sync(kFullMask, tile.hi, lanes));
    tile.all_lo = max(tile.all_lo, __shfl_xor_sync(kFullMask, tile.all_lo, lanes));
    tile.all_hi = min(tile.all_hi, __shfl_xor_sync(kFullMask, tile.all_hi, lanes));
  }
  return tile;
}

// ranges[0 .. count): in shared memory, the same result in every lane of the warp.
__device__ __forceinline__ TileRange range_of_tile(const KeyRange* ranges, int count) {
  TileRange tile = no_queries();
  for (int row = threadIdx.x % kWarpSize; row < count; row += kWarpSize) {
    tile = joined(tile, ranges[row]);
  }
  return joined_over_warp(tile);
}

// Fills ranges[0 .. kRows) for the queries from `first` on; past the last query, with the last's.
template <int kRows, int kThreads>
__device__ __forceinline__ void find_ranges(KeyRange* ranges, const AttentionProblem& problem,
                                            int64_t row, int first) {
  for (int i = threadIdx.x; i < kRows; i += kThreads) {
    ranges[i] = visible_keys(problem, row, min(int64_t{first} + i, problem.queries - 1));
  }
}

// Queries begin <= t < end.
struct QueryRange {
  int begin;
  int end;
};

// The queries that may see keys first .. first + count - 1 by the causal mask and the window.
__device__ __forceinline__ QueryRange queries_that_may_see(const AttentionProblem& problem,
                                                           int first, int count) {
  const int64_t shift = problem.keys - problem.queries;
  int64_t begin = 0, end = problem.queries;
  if (problem.causal) begin = max(begin, first - shift);
  if (problem.window > 0 && problem.window < problem.keys) {
    end = min(end, max(first + count - 1 - shift + problem.window, int64_t{0}));
  }
  return {static_cast<int>(begin), static_cast<int>(end)};
}

// ---- blocks ----

// A block's place: tiles of a head follow each other.
struct Place {
  int64_t row;
  int head;
  int first;  // query or key of the tile
};

// backwards: the last tile first, which under a causal mask has the most keys to see.
__device__ __forceinline__ Place place_of_block(int64_t num_heads, int tiles, int tile_size,
                                                bool backwards) {
  const int index = static_cast<int>(blockIdx.x), heads = static_cast<int>(num_heads);
  const int tile = index % tiles, rest = index / tiles;
  return {rest / heads, rest % heads, (backwards ? tiles - 1 - tile : tile) * tile_size};
}

// ---- launches ----

// f(std::integral_constant<int, kD>) with the smallest of the compiled sizes that holds head_size.
template <class F>
inline Status with_head_size(int64_t head_size, const F& f) {
  if (head_size <= 32) return f(std::integral_constant<int, 32>{});
  if (head_size <= 64) return f(std::integral_constant<int, 64>{});
  if (head_size <= 96) return f(std::integral_constant<int, 96>{});
  if (head_size <= 128) return f(std::integral_constant<int, 128>{});
  if (head_size <= 192) return f(std::integral_constant<int, 192>{});
  return f(std::integral_constant<int, 256>{});
}

// A launch of `blocks` in one dimension with more than 48 KB of shared memory, if need be.
template <class... Expected, class... Actual>
inline Status launch_blocks(void (*kernel)(Expected...), int64_t blocks, int threads,
                            int shared_bytes, Stream stream, const Actual&... arguments) {
  if (blocks > INT32_MAX) return static_cast<Status>(cudaErrorInvalidConfiguration);
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error != cudaSuccess) return static_cast<Status>(error);
  return launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(threads), shared_bytes, stream,
                arguments...);
}

}  // namespace
}  // namespace roots
