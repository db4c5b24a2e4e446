// How rows are cut for sums over them (gradients of biases): into blocks whose number and size
// depend on the number of rows alone. Each block is added up in float32 on its own, then the blocks
// in order; so the sum does not depend on threads.
#pragma once

#include "../common.h"

namespace roots {

constexpr int64_t kSumBlockRows = 32;
constexpr int64_t kMaxSumBlocks = 512;

inline int64_t sum_block_rows(int64_t rows) {
  const int64_t rows_of_most_blocks = (rows + kMaxSumBlocks - 1) / kMaxSumBlocks;
  return rows_of_most_blocks > kSumBlockRows ? rows_of_most_blocks : kSumBlockRows;
}

inline int64_t num_sum_blocks(int64_t rows) {
  return (rows + sum_block_rows(rows) - 1) / sum_block_rows(rows);
}

}  // namespace roots
