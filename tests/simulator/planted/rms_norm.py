"""Bugs in rms_norm: the residual, the walk over rows, the last row and what lies behind it."""

from __future__ import annotations

from tests.simulator.planted import PlantedBug

_TESTS = "tests/ops/test_rms_norm.py"
_PLAIN = f"{_TESTS} -k 'simulator and float32 and contiguous'"
_MANY_ROWS = f"{_TESTS} -k 'simulator and bfloat16 and contiguous and 37'"
_ONE_ROW = f"{_TESTS} -k 'simulator and bfloat16 and contiguous and 40'"
_RESIDUAL = f"{_TESTS} -k 'simulator and float32 and residual and zero_centred and 384'"

BUGS = [
    PlantedBug(
        "what comes next is the following row, not the walker's",
        "norm_backward.cuh",
        "next.load(args, row + walkers);",
        "next.load(args, row + 1);",
        _MANY_ROWS,
        seeds=(0,),
    ),
    PlantedBug(
        "partial sums added that nobody wrote",
        "norm_backward.cuh",
        "add_partial_rows(args.partial, std::min(walkers, args.rows),",
        "add_partial_rows(args.partial, walkers,",
        _ONE_ROW,
        sanitize=True,
    ),
    PlantedBug(
        "a row behind the last is written",
        "norm_forward.cuh",
        "const int64_t hidden = row < args.rows ? args.hidden : 0, offset",
        "const int64_t hidden = args.hidden, offset",
        _ONE_ROW,
        sanitize=True,
    ),
    PlantedBug(
        "gradient of the new residual dropped",
        "norm_backward.cuh",
        "from_float<T>(grad + to_float(dstream.values[e]));",
        "from_float<T>(grad);",
        _RESIDUAL,
        seeds=(0,),
    ),
    PlantedBug(
        "zero-centred weight forgotten in backward",
        "norm_backward.cuh",
        "to_float(dy.values[e]) * (to_float(weight.values[e]) + one);",
        "to_float(dy.values[e]) * to_float(weight.values[e]);",
        _RESIDUAL,
        seeds=(0,),
    ),
    PlantedBug(
        "x is normalised, not its sum with the residual",
        "norm_forward.cuh",
        "      values[k] = add_packs(values[k], residual[k]);\n"
        "      if (i < hidden) store_pack(static_cast<T*>(args.stream) + offset + i, values[k]);",
        "      if (i < hidden) {\n"
        "        store_pack(static_cast<T*>(args.stream) + offset + i,\n"
        "                   add_packs(values[k], residual[k]));\n"
        "      }",
        _RESIDUAL,
        seeds=(0,),
    ),
    PlantedBug(
        "epsilon left out",
        "norm_forward.cuh",
        "sqrtf(squares / static_cast<float>(hidden) + epsilon)",
        "sqrtf(squares / static_cast<float>(hidden))",
        _PLAIN,
        seeds=(0,),
    ),
]
