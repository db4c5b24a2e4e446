"""Rows that cover every legal pair of axes, and every field on every axis, equal one process."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from roots.verify.compare import Curve
from tests.parallel.covering import Row, read_rows
from tests.parallel.datasets import write_datasets
from tests.parallel.table import (
    HALF_TOLERANCE,
    MODELS,
    measure,
    plain_cases,
    unlike_halves,
)

ROWS = read_rows()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_datasets(tmp_path_factory.mktemp("table"))


@pytest.mark.distributed
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row_equals_one_process(row: Row, folder: Path) -> None:
    """Losses, norms, gradients, weights, the evaluation and the experts' loads of all ranks."""
    assert measure(folder, row).difference == ""


CURVE = Curve(losses=[2.0], norms=[1.0], scales=[256.0], skipped=[False], evaluation=2.0)


def test_scales_and_losses_of_fp16_that_differ_are_told() -> None:
    assert unlike_halves(CURVE, [CURVE]) == ""
    scales = replace(CURVE, scales=[128.0])
    assert unlike_halves(CURVE, [CURVE, scales]) == "scales on rank 1: [128.0], not [256.0]"
    assert unlike_halves(CURVE, [replace(CURVE, skipped=[True])]).startswith("scales on rank 0")
    loss = 2.0 * (1 + 1.1 * HALF_TOLERANCE)
    assert unlike_halves(CURVE, [replace(CURVE, losses=[loss])]).startswith("loss at step 1")
    assert unlike_halves(CURVE, [replace(CURVE, norms=[None])]).startswith("norm at step 1")


def test_plain_models_stand_on_every_layout_that_takes_them() -> None:
    """What --cover and --full choose from."""
    cases = list(islice(plain_cases(), 100))
    assert {case.model for case in cases} == MODELS.keys()
    assert len({case.name for case in cases}) == len(cases)
    assert [
        case for case in cases if case.model == "encoder_decoder" and case.layout["context"] > 1
    ] == []
