"""Bugs in bias_gelu: both forms' derivatives, the bias, the borders of rows and packs."""

from __future__ import annotations

from tests.simulator.planted import PlantedBug

_FILE = "bias_gelu.cu"
_TEST = "tests/ops/test_bias_gelu.py -k 'simulator and float32 and contiguous and not no_bias"
_EXACT = f"{_TEST} and not tanh'"
_TANH = f"{_TEST} and tanh'"
_ODD_WIDTH = "tests/ops/test_bias_gelu.py -k 'simulator and float32 and contiguous and 123'"

BUGS = [
    PlantedBug(
        "every pack adds the first of the bias",
        _FILE,
        "add = load_pack<kSize>(static_cast<const T*>(bias) + i);",
        "add = load_pack<kSize>(static_cast<const T*>(bias));",
        _EXACT,
        seeds=(0,),
    ),
    PlantedBug(
        "sign of the density",
        _FILE,
        "fmaf(-n.u, n.density, n.tail)",
        "fmaf(n.u, n.density, n.tail)",
        _EXACT,
        seeds=(0,),
    ),
    PlantedBug(
        "cube derived as if linear",
        _FILE,
        "fmaf(3.0f * kCubic, z * z, kLinear)",
        "fmaf(kCubic, z * z, kLinear)",
        _TANH,
        seeds=(0,),
    ),
    PlantedBug(
        "all blocks' sums in one place",
        _FILE,
        "store_sums(args.partial + blockIdx.x * args.width + i, sums);",
        "store_sums(args.partial + i, sums);",
        _EXACT,
        seeds=(0,),
    ),
    PlantedBug(
        "threads past the end of a row",
        _FILE,
        "at = blockIdx.x * args.width + i;\n  if (i >= args.width) return;",
        "at = blockIdx.x * args.width + i;",
        _ODD_WIDTH,
        seeds=(0,),
        sanitize=True,
    ),
    PlantedBug(
        "packs whatever the width",
        _FILE,
        "const bool wide = args.width % kWide == 0 && is_aligned(args.x, 16)",
        "const bool wide = is_aligned(args.x, 16)",
        _ODD_WIDTH,
        seeds=(0,),
        sanitize=True,
    ),
]
