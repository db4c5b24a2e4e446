"""Bugs in rotary: pairs, angles, tables, the dims that are kept, tokens past the last."""

from __future__ import annotations

from tests.simulator.planted import PlantedBug

_FILE = "rotary.cu"
_TEST = "tests/ops/test_rotary.py -k 'simulator and accurate and float32 and contiguous and 40"
_HALVES = f"{_TEST} and not interleaved and whole'"
_PARTIAL = f"{_TEST} and partial'"
_TABLES = f"{_TEST} and per_row and whole'"
_POSITIONS = f"{_TEST} and positions and whole'"

BUGS = [
    PlantedBug(
        "partner beside the first",
        _FILE,
        "kInterleaved ? a + kSize : a + angles;",
        "kInterleaved ? a + kSize : a + kSize;",
        _HALVES,
        seeds=(0,),
    ),
    PlantedBug(
        "backward by the same angle",
        _FILE,
        "if (args.inverse) sin.values[k] = -sin.values[k];",
        "",
        _HALVES,
        seeds=(0,),
    ),
    PlantedBug(
        "left overwritten before right is computed",
        _FILE,
        "fmaf(r, cos.values[k], l * sin.values[k])",
        "fmaf(r, cos.values[k], to_float(left) * sin.values[k])",
        _HALVES,
        seeds=(0,),
    ),
    PlantedBug(
        "kept dims counted from the angles",
        _FILE,
        "const int64_t kept = 2 * args.angles + (part - layout.rotated_items) * kSize;",
        "const int64_t kept = args.angles + (part - layout.rotated_items) * kSize;",
        _PARTIAL,
        seeds=(0,),
    ),
    PlantedBug(
        "all rows by the first row's table",
        _FILE,
        "return args.table_of_rows ? index : token;",
        "return token;",
        _TABLES,
        seeds=(0,),
    ),
    PlantedBug(
        "all rows at the first row's positions",
        _FILE,
        "const int64_t position = args.positions[index];",
        "const int64_t position = args.positions[token];",
        _POSITIONS,
        seeds=(0,),
    ),
    PlantedBug(
        "tokens past the last",
        _FILE,
        "min(static_cast<int64_t>(layout.tokens_of_block), args.rows * args.tokens - first_token)",
        "static_cast<int64_t>(layout.tokens_of_block)",
        _HALVES,
        seeds=(0,),
        sanitize=True,
    ),
]
