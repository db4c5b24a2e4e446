"""Bugs in what kernels share: reductions, walks over rows, sums in two stages."""

from __future__ import annotations

from tests.simulator.planted import PlantedBug

_LOSS = "tests/ops/test_cross_entropy.py -k 'simulator and bfloat16'"
_SWIGLU = "tests/ops/test_swiglu.py -k 'simulator and float32 and bias and contiguous'"

BUGS = [
    PlantedBug(
        "wrong lane in a sum",
        "device.cuh",
        "value += __shfl_xor_sync(kFullMask, value, offset);",
        "value += __shfl_xor_sync(kFullMask, value, offset / 2);",
        _LOSS,
    ),
    PlantedBug(
        "scratch read before all have written",
        "row.cuh",
        "    scratch[kWarpSize + warp] = value.sum;\n  }\n  __syncthreads();\n",
        "    scratch[kWarpSize + warp] = value.sum;\n  }\n",
        _LOSS,
    ),
    PlantedBug(
        "scratch written before all have read",
        "row.cuh",
        "  value = warp_merge(value);\n  __syncthreads();\n  return value;",
        "  value = warp_merge(value);\n  return value;",
        _LOSS,
        seeds=(0, 1, 2, 3, 4, 5),
    ),
    PlantedBug(
        "packs from the row's start whatever its address",
        "row.cuh",
        "const int64_t head = to_boundary < width ? to_boundary : width;",
        "const int64_t head = 0;",
        _LOSS,
    ),
    PlantedBug(
        "one element too many",
        "row.cuh",
        "if (tail + threadIdx.x < width)",
        "if (tail + threadIdx.x <= width)",
        _LOSS,
        sanitize=True,
    ),
    PlantedBug(
        "partial sums read before all have written",
        "column_sum.cuh",
        "  parts[threadIdx.y][threadIdx.x] = sum;\n  __syncthreads();\n",
        "  parts[threadIdx.y][threadIdx.x] = sum;\n",
        _SWIGLU,
    ),
]
