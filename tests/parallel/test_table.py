"""Combinations of axes that cover every legal pair of choices, each equal to one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from roots.verify.compare import Curve
from roots.verify.proof import TOLERANCE
from tests.helpers.runs import write_dataset
from tests.parallel.combinations import AXES, MODELS, Combination, covering, legal
from tests.parallel.table import compare_row, reference_curve

# The rules never look at the data, so that any name will do.
LEGAL = legal(Path("nowhere") / "data")
ROWS = sorted(covering(LEGAL), key=lambda row: row.ranks)


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("table") / "data")


@pytest.fixture(scope="module")
def references(prefix: Path) -> dict[str, Curve]:
    return {model: reference_curve(prefix, model) for model in MODELS}


def test_the_few_have_every_pair_that_any_has() -> None:
    assert set().union(*(row.choices(2) for row in ROWS)) == set().union(
        *(row.choices(2) for row in LEGAL)
    )
    assert len(LEGAL) >= 60
    assert 1 <= len(ROWS) <= len(LEGAL) // 4
    used = {(name, value) for row in LEGAL for name, value in row.parallel.items()}
    # Off is always legal; every other value of an axis that the config knows is tried somewhere.
    assert {(name, values[0]) for name, values in AXES.items()} <= used


def test_one_process_learns_and_clips(references: dict[str, Curve]) -> None:
    """The curves that everything is compared with must move: a thousand times the tolerance."""
    for curve in references.values():
        assert curve.losses[-1] < (1 - 1000 * TOLERANCE) * curve.losses[0]
        assert min(norm for norm in curve.norms if norm is not None) > 0.5


@pytest.mark.distributed
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_combination_equals_one_process(
    row: Combination, prefix: Path, references: dict[str, Curve]
) -> None:
    comparison = compare_row(prefix, row, references[row.model])
    assert comparison.equal, comparison.first.describe() if comparison.first else ""
    assert comparison.worst("gradient").relative < TOLERANCE
