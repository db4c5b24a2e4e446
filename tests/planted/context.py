"""Bugs in context parallelism: the ring, Ulysses, positions, weights and masks of a part."""

from __future__ import annotations

from tests.planted import PlantedBug

BUGS = [
    PlantedBug(
        "loss weights of context ranks not multiplied",
        "training/micro_batch.py",
        "place.take(batch.loss_weights_BT, 1) * place.context.size",
        "place.take(batch.loss_weights_BT, 1)",
        "tests/training/test_micro_batch.py",
    ),
]
