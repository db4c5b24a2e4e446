"""Bugs in layer_norm: the reduction over a row, what lies behind rows and columns, the biases."""

from __future__ import annotations

from tests.simulator.planted import PlantedBug

_TESTS = "tests/ops/test_layer_norm.py"
_PLAIN = f"{_TESTS} -k 'simulator and float32 and contiguous and not no_bias'"
_SEVERAL_WARPS = f"{_TESTS} -k 'simulator and float32 and contiguous and 384 and not no_bias'"
_MANY_ROWS = f"{_TESTS} -k 'simulator and float32 and contiguous and 46 and not no_bias'"
_RESIDUAL = f"{_TESTS} -k 'simulator and float32 and residual and zero_centred and 384'"
_ONE_ROW = f"{_TESTS} -k 'simulator and bfloat16 and contiguous and 40 and not no_bias'"
_ODD = f"{_TESTS} -k 'simulator and odd_addresses'"

BUGS = [
    PlantedBug(
        "sums of warps read before all are written",
        "norm_rows.cuh",
        "    __syncthreads();\n    a = warp_sum(",
        "    a = warp_sum(",
        _SEVERAL_WARPS,
    ),
    PlantedBug(
        "scratch written again before all have read",
        "norm_rows.cuh",
        "    turn_ ^= 1;\n",
        "",
        _SEVERAL_WARPS,
        seeds=(0, 1, 2, 3, 4, 5),
    ),
    PlantedBug(
        "rows of a block share their scratch",
        "norm_rows.cuh",
        "const int first = threadIdx.y * warps;",
        "const int first = 0;",
        _SEVERAL_WARPS,
    ),
    PlantedBug(
        "columns behind the last count as deviations",
        "norm_forward.cuh",
        "if (unit_start<kSize>(k) < hidden) total += pack_deviations(values[k], mean);",
        "total += pack_deviations(values[k], mean);",
        _ONE_ROW,
        seeds=(0,),
    ),
    PlantedBug(
        "packs of a residual at odd addresses",
        "norm_forward.cuh",
        "is_aligned(args.residual, 16) && is_aligned(args.weight, 16) &&",
        "is_aligned(args.weight, 16) &&",
        _ODD,
        seeds=(0,),
        sanitize=True,
    ),
    PlantedBug(
        "some rows of a block leave the barriers",
        "norm_backward.cuh",
        "row - threadIdx.y < args.rows; row += walkers",
        "row < args.rows; row += walkers",
        _RESIDUAL,
        seeds=(0,),
    ),
    PlantedBug(
        "gradient of the bias over that of the weight",
        "norm_backward.cuh",
        "store_sums(partial + args.hidden + i, dbias[k]);",
        "store_sums(partial + i, dbias[k]);",
        _PLAIN,
        seeds=(0,),
    ),
    PlantedBug(
        "sums of columns begun anew with every few rows",
        "norm_backward.cuh",
        "    first = false;\n",
        "",
        _MANY_ROWS,
        seeds=(0,),
    ),
]
