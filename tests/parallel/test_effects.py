"""Every choice of the table matters: it changes a run on one process.

A value that changes no loss, norm, evaluation or scale of a run proves nothing when layouts agree
about it: its needs in tests/parallel/fields.py lack something.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

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
    "data.pad_multiple": "what is padded is masked",
    "model.vocab_multiple": "what is padded is outside of the softmax",
}


def is_silent(choice: Choice) -> bool:
    """Whether a value may leave all numbers alone."""
    return choice.field in SILENT or choice.field.startswith("ops.")


@pytest.mark.distributed
def test_every_choice_changes_a_run(tmp_path: Path) -> None:
    (without,) = run_distributed(_without_effect, 1, write_datasets(tmp_path), timeout_seconds=500)
    assert without == []


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
