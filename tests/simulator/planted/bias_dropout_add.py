"""Bugs in bias_dropout_add: the mask, which both directions compute, and what is summed."""

from __future__ import annotations

from tests.simulator.planted import PlantedBug

_FILE = "bias_dropout_add.cu"
_TEST = "tests/ops/test_bias_dropout_add.py -k 'simulator and accurate and float32 and contiguous"
_BIASED = f"{_TEST} and 0.2 and not no_bias'"
_MASK = "tests/ops/test_dropout.py -k 'simulator and mask_of_the_definition'"

BUGS = [
    PlantedBug(
        "elements counted anew in every pack",
        _FILE,
        "to_float(x.values[k]) + to_float(bias.values[k]), i + k);",
        "to_float(x.values[k]) + to_float(bias.values[k]), k);",
        _BIASED,
        seeds=(0,),
    ),
    PlantedBug(
        "another token's mask in backward",
        _FILE,
        "const TokenMask mask(args.dropout, row);",
        "const TokenMask mask(args.dropout, first);",
        _BIASED,
        seeds=(0,),
    ),
    PlantedBug(
        "draws compared as unsigned numbers",
        _FILE,
        "static_cast<int32_t>(v) >= threshold",
        "v >= static_cast<uint32_t>(threshold)",
        _MASK,
        seeds=(0,),
    ),
    PlantedBug(
        "arithmetic shift",
        _FILE,
        "v ^= v >> 16;",
        "v ^= static_cast<uint32_t>(static_cast<int32_t>(v) >> 16);",
        _MASK,
        seeds=(0,),
    ),
    PlantedBug(
        "half a key",
        _FILE,
        "high = static_cast<uint32_t>(key >> 32);",
        "high = static_cast<uint32_t>(key);",
        _MASK,
        seeds=(0,),
    ),
    PlantedBug(
        "bias past the dropout",
        _FILE,
        "mask.apply(to_float(x.values[k]) + to_float(bias.values[k]), i + k);",
        "mask.apply(to_float(x.values[k]), i + k) + to_float(bias.values[k]);",
        _BIASED,
        seeds=(0,),
    ),
    PlantedBug(
        "gradient of the bias without the mask",
        _FILE,
        "if (kBias) sums[k] += gradient;",
        "if (kBias) sums[k] += to_float(dy.values[k]);",
        _BIASED,
        seeds=(0,),
    ),
]
