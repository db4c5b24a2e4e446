// What the tensor-core attention kernels share: swizzled tiles in shared memory, products of
// fragments, dropout of a fragment.
//
// A fragment of 16 x 8 accumulators gives a thread of lane 4g + t the elements (g, 2t), (g, 2t+1),
// (g+8, 2t), (g+8, 2t+1). Two of them side by side, rounded to 16 bits, are the left operand of the
// next product: scores never leave the registers.
#pragma once

#include "attention_common.cuh"

namespace roots {
namespace {

// ---- tiles ----

// Rows of kWidth 16-bit elements in shared memory, in chunks of 16 bytes. Chunk c of row r lies at
// place c ^ (r % 8) of its row (rows of a multiple of 128 bytes) or c ^ (r / 2 % 4) (of 64), so
// that 8 rows of one chunk, which load_matrices reads at once, are in different banks.
template <int kWidth>
struct Tile {
  static constexpr int kChunks = kWidth / 8;
  static constexpr int kRowBytes = kWidth * 2;
  static constexpr bool kWide = kChunks % 8 == 0;
  static constexpr int kMask = kWide ? 7 : 3;

  static __device__ __forceinline__ int swizzle(int row) { return (kWide ? row : row / 2) & kMask; }
  static __device__ __forceinline__ int offset(int row, int chunk) {
    return row * kRowBytes + (chunk ^ swizzle(row)) * 16;
  }
  // Where this lane points load_matrices for the four 8 x 8 matrices of rows 0-15, chunks 0 and 1.
  static __device__ __forceinline__ int lane_offset() {
    const int lane = threadIdx.x % kWarpSize;
    return offset(lane % 16, lane / 16);
  }
  // The same for the 16 rows from `row` (a multiple of 16) and the two chunks from `chunk` (even).
  static __device__ __forceinline__ const unsigned char* at(const unsigned char* tile,
                                                            int lane_offset, int row, int chunk) {
    return tile + (lane_offset ^ ((chunk & kMask) * 16)) + row * kRowBytes + (chunk & ~kMask) * 16;
  }
};

// Lanes that copy a row: a power of two, 16 bytes each; some rest where the width is none.
template <int kWidth>
constexpr int kRowLanes = kWidth <= 32    ? 4
                          : kWidth <= 64  ? 8
                          : kWidth <= 128 ? 16
                                          : 32;

// Starts to copy rows first .. first + kRows - 1 of a matrix into a tile. Rows from `end` on and
// columns from `width` on become zero. All threads of the block take part.
template <class T, int kWidth, int kRows, int kThreads>
__device__ __forceinline__ void load_tile(unsigned char* tile, const T* rows, int64_t stride,
                                          int first, int end, int width) {
  constexpr int kLanes = kRowLanes<kWidth>, kStep = kThreads / kLanes;
  static_assert(kRows % kStep == 0, "");
  const int chunk = threadIdx.x % kLanes, row = threadIdx.x / kLanes;
  if (kLanes != Tile<kWidth>::kChunks && chunk >= Tile<kWidth>::kChunks) return;
  const bool inside = chunk * 8 < width;
  const T* source = rows + (first + row) * stride + chunk * 8;
#pragma unroll
  for (int i = 0; i < kRows; i += kStep) {
    copy_async_16(tile + Tile<kWidth>::offset(row + i, chunk), source,
                  inside && first + row + i < end ? 16 : 0);
    source += kStep * stride;
  }
}

// Writes 16 kM rows of accumulators, times factors[m][row half], to `target` (row stride in
// elements), by way of `tile`, which only this warp uses. Rows from `count` on are left out.
template <class T, int kWidth, int kM>
__device__ __forceinline__ void store_rows(unsigned char* tile,
                                           const float (&values)[kM][kWidth / 8][4],
                                           const float (&factors)[kM][2], T* target, int64_t stride,
                                           int count, int width) {
  const int lane = threadIdx.x % kWarpSize, group = lane / 4, column = lane % 4;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int n = 0; n < kWidth / 8; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = m * 16 + half * 8 + group;
        const float factor = factors[m][half];
        store_pack(reinterpret_cast<T*>(tile + Tile<kWidth>::offset(row, n)) + column * 2,
                   Pack<T, 2>{{from_float<T>(values[m][n][2 * half] * factor),
                               from_float<T>(values[m][n][2 * half + 1] * factor)}});
      }
    }
  }
  __syncwarp();
  constexpr int kLanes = kRowLanes<kWidth>;
  const int chunk = lane % kLanes;
  if (chunk * 8 >= width) return;
  for (int row = lane / kLanes; row < kM * 16 && row < count; row += kWarpSize / kLanes) {
    const unsigned char* source = tile + Tile<kWidth>::offset(row, chunk);
    store_pack(target + row * stride + chunk * 8, load_pack<8>(reinterpret_cast<const T*>(source)));
  }
}

// ---- products ----

// Unrolled in full, a row of 96 makes ptxas load ahead more than registers hold (sm_90, forward).
template <int kWidth>
constexpr int kRowsUnrolled = kWidth == 96 ? 3 : kWidth / 16;

// acc[m][n] += A B^T: A the 16 kM rows from `row_a` of tile a, B the 8 kN rows from `row_b` of
// tile b, both kWidth wide.
template <class T, int kWidth, int kM, int kN>
__device__ __forceinline__ void multiply_rows(float (&acc)[kM][kN][4], const unsigned char* a,
                                              int row_a, const unsigned char* b, int row_b,
                                              int lane_offset) {
  using Layout = Tile<kWidth>;
#pragma unroll kRowsUnrolled < kWidth>
  for (int k = 0; k < kWidth / 16; ++k) {
    uint32_t left[kM][4];
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      load_matrices(left[m], Layout::at(a, lane_offset, row_a + m * 16, k * 2));
    }
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      uint32_t right[4];
      load_matrices(right, Layout::at(b, lane_offset, row_b + n * 8, k * 2));
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        multiply_add<T>(acc[m][n], left[m], {right[0], right[2]});
        multiply_add<T>(acc[m][n + 1], left[m], {right[1], right[3]});
      }
    }
  }
}

// The fragments of the 16 kM rows from `row` of a tile, for multiply_kept.
template <int kWidth, int kM>
__device__ __forceinline__ void load_fragments(uint32_t (&kept)[kM][kWidth / 16][4],
                                               const unsigned char* tile, int row,
                                               int lane_offset) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int k = 0; k < kWidth / 16; ++k) {
      load_matrices(kept[m][k], Tile<kWidth>::at(tile, lane_offset, row + m * 16, k * 2));
    }
  }
}

// multiply_rows with the fragments of A in registers.
template <class T, int kWidth, int kM, int kN>
__device__ __forceinline__ void multiply_kept(float (&acc)[kM][kN][4],
                                              const uint32_t (&left)[kM][kWidth / 16][4],
                                              const unsigned char* b, int row_b, int lane_offset) {
#pragma unroll
  for (int k = 0; k < kWidth / 16; ++k) {
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      uint32_t right[4];
      load_matrices(right, Tile<kWidth>::at(b, lane_offset, row_b + n * 8, k * 2));
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        multiply_add<T>(acc[m][n], left[m][k], {right[0], right[2]});
        multiply_add<T>(acc[m][n + 1], left[m][k], {right[1], right[3]});
      }
    }
  }
}

// acc[m][n] += P B: P 16 kM rows of 8 kN columns in registers, as packed by pack_rows; B the 8 kN
// rows from `row_b` of tile b.
template <class T, int kWidth, int kM, int kN>
__device__ __forceinline__ void multiply_packed(float (&acc)[kM][kWidth / 8][4],
                                                const uint32_t (&left)[kM][kN][2],
                                                const unsigned char* b, int row_b,
                                                int lane_offset) {
#pragma unroll
  for (int k = 0; k < kN / 2; ++k) {
#pragma unroll
    for (int n = 0; n < kWidth / 8; n += 2) {
      uint32_t right[4];
      load_matrices<true>(right, Tile<kWidth>::at(b, lane_offset, row_b + k * 16, n));
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        const uint32_t a[4] = {left[m][2 * k][0], left[m][2 * k][1], left[m][2 * k + 1][0],
                               left[m][2 * k + 1][1]};
        multiply_add<T>(acc[m][n], a, {right[0], right[1]});
        multiply_add<T>(acc[m][n + 1], a, {right[2], right[3]});
      }
    }
  }
}

// Rounds accumulators to T in pairs: packed[m][n][half] holds columns 2t and 2t+1 of row half.
template <class T, int kM, int kN>
__device__ __forceinline__ void pack_rows(uint32_t (&packed)[kM][kN][2],
                                          const float (&values)[kM][kN][4]) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int n = 0; n < kN; ++n) {
      packed[m][n][0] = pack_pair<T>(values[m][n][0], values[m][n][1]);
      packed[m][n][1] = pack_pair<T>(values[m][n][2], values[m][n][3]);
    }
  }
}

template <int kM, int kN>
__device__ __forceinline__ void clear(float (&acc)[kM][kN][4]) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[m][n][e] = 0.0f;
    }
  }
}

template <int kM>
__device__ __forceinline__ void fill(float (&factors)[kM][2], float value) {
#pragma unroll
  for (int m = 0; m < kM; ++m) factors[m][0] = factors[m][1] = value;
}

// ---- masks and dropout ----

// Sets what a row does not see to `hidden`: ranges[r] is of row r, column c is key first + c.
template <int kM, int kN>
__device__ __forceinline__ void hide_keys(float (&values)[kM][kN][4], const KeyRange* ranges,
                                          int first, float hidden) {
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const KeyRange range = ranges[m * 16 + half * 8 + lane / 4];
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int key = first + n * 8 + lane % 4 * 2 + e;
          if (key < range.lo || key >= range.hi) values[m][n][2 * half + e] = hidden;
        }
      }
    }
  }
}

// The same transposed, with zeros: row r is key `first` + r, ranges[c] is of column c.
template <int kM, int kN>
__device__ __forceinline__ void hide_queries(float (&weights)[kM][kN][4], const KeyRange* ranges,
                                             int first) {
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int n = 0; n < kN; ++n) {
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      const KeyRange range = ranges[n * 8 + lane % 4 * 2 + odd];
#pragma unroll
      for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int key = first + m * 16 + half * 8 + lane / 4;
          if (key < range.lo || key >= range.hi) weights[m][n][2 * half + odd] = 0.0f;
        }
      }
    }
  }
}

// Sets what is dropped to zero: row r is query place.first + warp_row + r, column c is key
// first + c; `first` is a multiple of 32.
template <int kM, int kN>
__device__ __forceinline__ void drop_rows(float (&values)[kM][kN][4],
                                          const AttentionProblem& problem, const Place& place,
                                          int warp_row, int first) {
  const int lane = threadIdx.x % kWarpSize;
  const uint64_t row_key = static_cast<uint64_t>(problem.dropout_keys[place.row]);
  const uint32_t head = static_cast<uint32_t>(problem.first_head + place.head);
  const uint32_t position =
      static_cast<uint32_t>(place.first + warp_row + lane / 4 + problem.keys - problem.queries);
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int n = 0; n < kN; n += 4) {
        const PhiloxBits bits =
            attention_dropout_bits(row_key, position + m * 16 + half * 8, head,
                                   static_cast<uint32_t>(first + n * 8) / 32, lane % 4);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float* pair = &values[m][n + i][2 * half];
          if ((bits.word[i] & 0xffffu) < problem.dropout_threshold) pair[0] = 0.0f;
          if ((bits.word[i] >> 16) < problem.dropout_threshold) pair[1] = 0.0f;
        }
      }
    }
  }
}

}  // namespace
}  // namespace roots
