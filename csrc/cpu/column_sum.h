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

// first_stage(row_begin, row_end, sums): adds its rows to the `columns` zeros at `sums`.
template <class F>
void sum_columns(int64_t rows, int64_t columns, float* partial, float* result,
                 const F& first_stage) {
  const int64_t block_rows = sum_block_rows(rows), num_blocks = num_sum_blocks(rows);
  parallel_for(num_blocks, row_grain(block_rows * columns), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      float* sums = partial + block * columns;
      std::fill_n(sums, columns, 0.0f);
      first_stage(block * block_rows, std::min(rows, (block + 1) * block_rows), sums);
    }
  });
  const int64_t num_pieces = (columns + kBlock - 1) / kBlock;
  parallel_for(num_pieces, row_grain(num_blocks * kBlock), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * kBlock; i < std::min(columns, end * kBlock); i += kBlock) {
      const int64_t count = std::min(kBlock, columns - i);
      Pair sum{Vec(0.0f), Vec(0.0f)};
      for (int64_t block = 0; block < num_blocks; ++block) {
        sum = sum + load(partial + block * columns + i, count);
      }
      store(result + i, sum, count);
    }
  });
}

}  // namespace
}  // namespace ROOTS_CAPABILITY
}  // namespace roots
