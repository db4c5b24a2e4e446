// Sums over rows in two stages, see csrc/ops/column_sum.h.
#pragma once

#include "../ops/column_sum.h"
#include "cpu.h"

namespace roots {
namespace ROOTS_CAPABILITY {
namespace {

template <class Count>
inline void add_to(float* sums, const Pair& value, Count count) {
  store(sums, load(sums, count) + value, count);
}

// The first stage: add_rows(row_begin, row_end, sums) adds its rows to the `columns` zeros at
// `sums`, a row of `partial` [num_sum_blocks(rows), columns].
template <class F>
void sum_row_blocks(int64_t rows, int64_t columns, float* partial, const F& add_rows) {
  const int64_t block_rows = sum_block_rows(rows);
  parallel_for(num_sum_blocks(rows), row_grain(block_rows * columns),
               [&](int64_t begin, int64_t end) {
                 for (int64_t block = begin; block < end; ++block) {
                   float* sums = partial + block * columns;
                   std::fill_n(sums, columns, 0.0f);
                   add_rows(block * block_rows, std::min(rows, (block + 1) * block_rows), sums);
                 }
               });
}

// The second stage: the sums over rows of partial [num_blocks, stride], of its first `columns`.
inline void add_row_blocks(const float* partial, int64_t num_blocks, int64_t stride,
                           int64_t columns, float* result) {
  const int64_t num_pieces = (columns + kBlock - 1) / kBlock;
  parallel_for(num_pieces, row_grain(num_blocks * kBlock), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * kBlock; i < std::min(columns, end * kBlock); i += kBlock) {
      const int64_t count = std::min(kBlock, columns - i);
      Pair sum{Vec(0.0f), Vec(0.0f)};
      for (int64_t block = 0; block < num_blocks; ++block) {
        sum = sum + load(partial + block * stride + i, count);
      }
      store(result + i, sum, count);
    }
  });
}

template <class F>
void sum_columns(int64_t rows, int64_t columns, float* partial, float* result, const F& add_rows) {
  sum_row_blocks(rows, columns, partial, add_rows);
  add_row_blocks(partial, num_sum_blocks(rows), columns, columns, result);
}

}  // namespace
}  // namespace ROOTS_CAPABILITY
}  // namespace roots
