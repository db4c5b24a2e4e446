"""Bugs in attention: waits, barriers, masks, fragments, the online softmax, Philox, the walks."""

from __future__ import annotations

from tests.simulator.planted import PlantedBug

_TILES = "tests/ops/test_attention_tiles.py"
_FORWARD = "attention_forward_mma.cu"
_KEYS = "attention_backward_keys_mma.cu"
_QUERIES = "attention_backward_queries_mma.cu"


def _lengths(border: str, dtype: str = "float16", head_size: int = 64) -> str:
    return f"'{_TILES}::test_lengths[simulator-cpu-{border}-{head_size}-{dtype}]'"


_CAUSAL = _lengths("193x193")
_DROPPED = f"'{_TILES}::test_head_sizes[simulator-cpu-64-dropped-float16]'"
_GROUPED = f"'{_TILES}::test_packed_documents[simulator-cpu-48-kept-float16]'"
_GROWING = f"'{_TILES}::test_scores_that_grow_from_tile_to_tile[simulator-cpu-growing-float16]'"

BUGS = [
    PlantedBug(
        "keys and values not awaited",
        _FORWARD,
        "    copy_async_wait<0>();\n    __syncthreads();\n    const int next",
        "    copy_async_wait<1>();\n    __syncthreads();\n    const int next",
        _CAUSAL,
    ),
    PlantedBug(
        "a stage filled while others read it",
        _FORWARD,
        "    copy_async_wait<0>();\n    __syncthreads();\n    const int next",
        "    copy_async_wait<0>();\n    const int next",
        _CAUSAL,
    ),
    PlantedBug(
        "output not rescaled",
        _FORWARD,
        "      output[c][2 * half] *= factor;\n",
        "",
        _GROWING,
    ),
    PlantedBug(
        "sum not rescaled",
        _FORWARD,
        "    sum[half] *= factor;\n",
        "",
        _GROWING,
    ),
    PlantedBug(
        "diagonal hidden",
        "attention_common.cuh",
        "hi = min(hi, diagonal + 1);",
        "hi = min(hi, diagonal);",
        _CAUSAL,
    ),
    PlantedBug(
        "the last tile of queries left out",
        _KEYS,
        "(range.end + Shape::kQueries - 1) / Shape::kQueries",
        "range.end / Shape::kQueries",
        _CAUSAL,
    ),
    PlantedBug(
        "the last key of a tile not masked",
        _FORWARD,
        "shared->range.needs_mask(first, Shape::kKeys)",
        "shared->range.needs_mask(first, Shape::kKeys - 1)",
        _lengths("66x128"),
    ),
    PlantedBug(
        "quarters of a fragment swapped",
        "attention_mma.cuh",
        "const uint32_t a[4] = {left[m][2 * k][0], left[m][2 * k][1], left[m][2 * k + 1][0],",
        "const uint32_t a[4] = {left[m][2 * k][1], left[m][2 * k][0], left[m][2 * k + 1][0],",
        _CAUSAL,
    ),
    PlantedBug(
        "a row past the last one read",
        "attention_fp32.cuh",
        "if (first + row < end && column < width) {",
        "if (first + row <= end && column < width) {",
        _lengths("31x200", "float32"),
        sanitize=True,
    ),
    PlantedBug(
        "draws of the next query in dk and dv",
        _KEYS,
        "columns.position + n * 8 + lane % 4 * 2 + odd,",
        "columns.position + n * 8 + lane % 4 * 2 + 1 - odd,",
        _DROPPED,
    ),
    PlantedBug(
        "draws of another warp in dq",
        _QUERIES,
        "drop_rows(grad, problem, shared->place, warp_row, first);",
        "drop_rows(grad, problem, shared->place, 0, first);",
        _DROPPED,
    ),
    PlantedBug(
        "weights of the other warp not awaited",
        _KEYS,
        "    barrier_sync(barrier, 64);\n",
        "    __syncwarp();\n",
        _CAUSAL,
    ),
    PlantedBug(
        "tile of queries not awaited",
        _KEYS,
        "    copy_async_wait<0>();\n    __syncthreads();\n    ++walk.tile;",
        "    copy_async_wait<1>();\n    __syncthreads();\n    ++walk.tile;",
        _CAUSAL,
    ),
    PlantedBug(
        "values written over while others read them",
        _KEYS,
        "  copy_async_wait<0>();\n  __syncthreads();\n  write<T>",
        "  copy_async_wait<0>();\n  write<T>",
        _CAUSAL,
        seeds=(0, 1, 2, 3, 4, 5),
    ),
    PlantedBug(
        "heads of the group after the first begin late",
        _KEYS,
        "for (; walk.head < group; ++walk.head, walk.tile = walk.begin) {",
        "for (; walk.head < group; ++walk.head, walk.tile = walk.begin + 1) {",
        _GROUPED,
    ),
    PlantedBug(
        "a tile passed over that is seen",
        _KEYS,
        "walk.tile += __ffs(found) - 1;",
        "walk.tile += 32 - __clz(found) - 1;",
        _GROUPED,
    ),
    PlantedBug(
        "weights of queries that are none",
        _KEYS,
        "statistics.lse[column] = value == -INFINITY ? INFINITY : value * kLog2E;",
        "statistics.lse[column] = value * kLog2E;",
        _CAUSAL,
    ),
    PlantedBug(
        "gradient of the log-sum-exp added",
        "attention_backward_prepare.cu",
        "sum -= args.grad_lse[place];",
        "sum += args.grad_lse[place];",
        _CAUSAL,
    ),
    PlantedBug(
        "scores read before half a warp has written them",
        "attention_forward_fp32.cu",
        "  store_pairs(shared.weights, scores);\n  __syncwarp();\n",
        "  store_pairs(shared.weights, scores);\n",
        _lengths("70x190", "float32"),
        seeds=(0, 1, 2, 3, 4, 5),
    ),
    PlantedBug(
        "keys replaced while others read them",
        "attention_backward_fp32.cu",
        "    accumulate_wide<kD>(dq, shared->scores, shared->other[0]);\n    __syncthreads();\n",
        "    accumulate_wide<kD>(dq, shared->scores, shared->other[0]);\n",
        _lengths("70x190", "float32"),
        seeds=(0, 1, 2, 3, 4, 5),
    ),
]
