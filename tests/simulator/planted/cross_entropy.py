"""Bugs in cross_entropy: the running maximum, slices, the gradient over its own input."""

from __future__ import annotations

from tests.simulator.planted import PlantedBug

_FILE = "cross_entropy.cu"
_LOSS = "tests/ops/test_cross_entropy.py -k 'simulator and float32 and accurate'"
_SLICES = "tests/ops/test_cross_entropy.py -k 'simulator and float32 and slices_together'"
_EXTRAS = "tests/ops/test_cross_entropy.py -k 'simulator and float32 and smoothing_and_z_loss'"

BUGS = [
    PlantedBug(
        "sum not rescaled to the new maximum",
        _FILE,
        "      seen.sum *= exp_for<T>(seen.maximum - value);\n",
        "",
        _LOSS,
        seeds=(0,),
    ),
    PlantedBug(
        "label's logit read after it is written over",
        _FILE,
        "to_float(logits[label]) : 0.0f;\n  __syncthreads();\n",
        "to_float(logits[label]) : 0.0f;\n",
        _LOSS,
        seeds=(0, 1, 2, 3, 4, 5),
    ),
    PlantedBug(
        "label's entry written before the others are",
        _FILE,
        "  __syncthreads();\n  if (!writes_label) return;",
        "  if (!writes_label) return;",
        _LOSS,
        seeds=(0, 1, 2, 3, 4, 5),
    ),
    PlantedBug(
        "label looked up as if the slice began at 0",
        _FILE,
        "const int64_t column = args.labels[row] - args.first;",
        "const int64_t column = args.labels[row];",
        _SLICES,
        seeds=(0,),
    ),
    PlantedBug(
        "slope of the z-loss from the maximum alone",
        _FILE,
        "args.z_loss * (shift + log_sum);",
        "args.z_loss * shift;",
        _EXTRAS,
        seeds=(0,),
    ),
    PlantedBug(
        "smoothing not shared out over the vocabulary",
        _FILE,
        "args.label_smoothing / static_cast<float>(args.vocab_size);",
        "args.label_smoothing / static_cast<float>(args.width);",
        _SLICES,
        seeds=(0,),
    ),
]
