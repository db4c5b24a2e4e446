"""Bugs in scaled_masked_softmax: the causal border, places of masks, rows of every length."""

from __future__ import annotations

from tests.simulator.planted import PlantedBug

_FILE = "scaled_masked_softmax.cu"
_TESTS = "tests/ops/test_scaled_masked_softmax.py"
_SHORT = f"{_TESTS} -k 'simulator and float32 and accurate and none and 257'"
_CAUSAL = f"{_TESTS} -k 'simulator and more_queries_than_keys'"
_LONG = f"{_TESTS} -k 'simulator and float32 and accurate and none and 20005'"
_MASKS = f"{_TESTS} -k 'simulator and float32 and strided_scores'"
_HIDDEN = f"{_TESTS} -k 'simulator and float32 and without_keys'"

BUGS = [
    PlantedBug(
        "a query does not see its own key",
        _FILE,
        "args.keys - args.queries + 1;",
        "args.keys - args.queries;",
        _CAUSAL,
        seeds=(0,),
    ),
    PlantedBug(
        "keys in front counted from the first query",
        _FILE,
        "static_cast<int64_t>(t) + args.keys - args.queries + 1;",
        "static_cast<int64_t>(t) + 1;",
        _CAUSAL,
        seeds=(0,),
    ),
    PlantedBug(
        "sum of a long row not rescaled",
        _FILE,
        "    seen.sum *= exp_for<T>(seen.maximum - shift);\n",
        "",
        _LONG,
        seeds=(0,),
    ),
    PlantedBug(
        "mask of another head",
        _FILE,
        "static_cast<int64_t>(bn % heads) * args.mask_head_stride",
        "static_cast<int64_t>(bn / heads) * args.mask_head_stride",
        _MASKS,
        seeds=(0,),
    ),
    PlantedBug(
        "a row without keys divided by zero",
        _FILE,
        "const float factor = total == 0.0f ? 0.0f : 1.0f / total;",
        "const float factor = 1.0f / total;",
        _HIDDEN,
        seeds=(0,),
    ),
    PlantedBug(
        "packs beyond the end of the row",
        _FILE,
        "if (aligned && column >= 0 && column + kSize <= size) return load_pack",
        "if (aligned && column >= 0 && column < size) return load_pack",
        _SHORT,
        seeds=(0,),
    ),
]
