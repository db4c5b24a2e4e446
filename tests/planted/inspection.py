"""Bugs in what is told of the inside of a model."""

from __future__ import annotations

from tests.planted import PlantedBug

BUGS = [
    PlantedBug(
        "induction looked for at the last occurrence itself",
        "inspection/heads.py",
        '"induction": along(length - 1, length),',
        '"induction": along(length, length),',
        "tests/inspection/test_heads.py -k places",
    ),
    PlantedBug(
        "attention shown without its window",
        "inspection/hooks.py",
        "        window=module.window,\n",
        "        window=0,\n",
        "tests/inspection/test_hooks.py -k mistral",
    ),
    PlantedBug(
        "bias left out of what would overflow",
        "inspection/hooks.py",
        "                    note(name, value + bias)\n",
        "                    note(name, value)\n",
        "tests/inspection/test_overflow.py -k bias",
    ),
    PlantedBug(
        "loss of a token taken from the weight of the one behind it",
        "inspection/rows.py",
        "batch.loss_weights_BT[0, :-1] > 0",
        "batch.loss_weights_BT[0, 1:] > 0",
        "tests/inspection/test_inspect.py -k windows",
    ),
    PlantedBug(
        "share of the stream without its length",
        "inspection/residual.py",
        "along_BT / last_BTH.square().sum(-1).clamp_min(1e-30)",
        "along_BT / last_BTH.norm(dim=-1).clamp_min(1e-30)",
        "tests/inspection/test_residual.py",
    ),
]
