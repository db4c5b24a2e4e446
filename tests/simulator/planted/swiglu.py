"""Bugs in swiglu: places, bias, the derivative, the borders of rows and packs."""

from __future__ import annotations

from tests.simulator.planted import PlantedBug

_FILE = "swiglu.cu"
_BIASED = "tests/ops/test_swiglu.py -k 'simulator and float32 and contiguous and not no_bias'"
_ODD = "tests/ops/test_swiglu.py -k 'simulator and odd_addresses'"
_MANY_ROWS = "tests/ops/test_swiglu.py -k 'simulator and float32 and contiguous and 257'"

BUGS = [
    PlantedBug(
        "rows of one half",
        _FILE,
        "static_cast<const T*>(x) + row * 2 * width + i;",
        "static_cast<const T*>(x) + row * width + i;",
        _BIASED,
        seeds=(0,),
    ),
    PlantedBug(
        "the gate's bias for both",
        _FILE,
        "up_bias = load_pack<kSize>(static_cast<const T*>(bias) + width + i);",
        "up_bias = load_pack<kSize>(static_cast<const T*>(bias) + i);",
        _BIASED,
        seeds=(0,),
    ),
    PlantedBug(
        "derivative with the wrong side of the sigmoid",
        _FILE,
        "fmaf(x.gate[k], s.above, 1.0f)",
        "fmaf(x.gate[k], s.below, 1.0f)",
        _BIASED,
        seeds=(0,),
    ),
    PlantedBug(
        "sums of the two halves in one place",
        _FILE,
        "store_sums(partial + width, sum.up);",
        "store_sums(partial, sum.up);",
        _BIASED,
        seeds=(0,),
    ),
    PlantedBug(
        "packs at odd addresses",
        _FILE,
        "args.width % kWide == 0 && is_aligned(args.x, 16) && is_aligned(args.y, 16)",
        "args.width % kWide == 0 && is_aligned(args.y, 16)",
        _ODD,
        seeds=(0,),
        sanitize=True,
    ),
    PlantedBug(
        "rows past the last",
        _FILE,
        "const int64_t end = min(first + rows_of_block, args.rows);",
        "const int64_t end = first + rows_of_block;",
        _MANY_ROWS,
        seeds=(0,),
        sanitize=True,
    ),
]
