"""Does every choice of the table matter? Each is trained on one process with and without its value.

    OMP_NUM_THREADS=1 python -m tests.parallel.effects

A value that changes no loss, norm, evaluation or scale of a run proves nothing when layouts agree
about it: its needs in tests/parallel/fields.py lack something. Exit code 1 if there is such a one.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from roots.errors import RootsError
from roots.verify.compare import Curve
from tests.helpers.distributed import run_distributed
from tests.parallel.combinations import layout_of
from tests.parallel.covering import config_of
from tests.parallel.datasets import write_datasets
from tests.parallel.fields import CHOICES, Choice
from tests.parallel.layouts import overflow_at_first, train_curve

# What is meant to change nothing, or nothing but rounding.
SILENT = {
    "data.num_workers": "reads ahead",
    "model.vocab_multiple": "what is padded is outside of the softmax",
}


def is_silent(choice: Choice) -> bool:
    """Whether a value may leave all numbers alone."""
    return choice.field in SILENT or choice.field.startswith("ops.")


def main() -> None:
    """Train, print, exit."""
    with tempfile.TemporaryDirectory() as folder:
        (without,) = run_distributed(
            _without_effect, 1, write_datasets(Path(folder)), timeout_seconds=3600
        )
    for name in without:
        print(f"{name}: changes nothing")
    print(f"{len(CHOICES)} choices, {len(without)} that change nothing")
    sys.exit(1 if without else 0)


def _without_effect(rank: int, world_size: int, folder: Path) -> list[str]:
    """The choices that give the numbers of their needs alone."""
    known: dict[str, Any] = {}

    def numbers(settings: dict[str, Any]) -> Any:
        key = repr(sorted(settings.items()))
        if key not in known:
            config = config_of(folder, settings, layout_of())
            halves = config.training.precision == "fp16"
            train = partial(train_curve, tamper=overflow_at_first if halves else None)
            known[key] = _numbers(train(rank, world_size, config, tensors=False))
        return known[key]

    found = []
    for choice in CHOICES:
        needs = {name: value for name, value in choice.needs.items() if name != choice.field}
        if not is_silent(choice) and _leaves(numbers, choice, needs):
            found.append(choice.name)
    return found


def _leaves(numbers: Any, choice: Choice, needs: dict[str, Any]) -> bool:
    try:
        without = numbers(needs)
    except RootsError:
        # What is needed is not legal alone.
        return False
    return bool(numbers(choice.settings) == without)


def _numbers(curve: Curve) -> Any:
    return curve.losses, curve.norms, curve.evaluation, curve.scales


if __name__ == "__main__":
    main()
