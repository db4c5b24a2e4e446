"""The pictures of a report: those that there is something for, and long curves in few points."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from roots.errors import RootsError
from roots.training.report.pictures import (
    MOST_POINTS,
    Picture,
    pictures_of,
    thinned,
    write_pictures,
)
from roots.training.report.read import read_report
from tests.helpers.ledgers import FakeRun, with_records


def test_pictures_are_those_that_there_is_something_for(tmp_path: Path) -> None:
    FakeRun(tmp_path).start(0)
    assert [each.name for each in pictures_of(read_report(tmp_path))] == ["goodput"]


def test_every_picture_can_be_drawn_of_one_step(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plots` is missing")
    run = FakeRun(tmp_path)
    run.steps(run.start(0), 1, 1)
    with_records(run, steps=1)
    (tmp_path / "rank_times.jsonl").write_text(
        '{"step": 1, "seconds": [' + ", ".join(["1.0"] * 20) + "]}\n"
    )
    drawn = write_pictures(list(pictures_of(read_report(tmp_path))), tmp_path / "out")
    assert "range of 20 ranks" in drawn["step_seconds"]
    assert len(drawn) == 7


def test_a_start_that_died_before_it_trained_can_be_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plots` is missing")
    run = FakeRun(tmp_path)
    run.steps(run.start(0), 1, 1)
    run.start(0)
    text = run.path.read_text().splitlines(keepends=True)
    for kept in (text[:-1], text[:1]):
        run.path.write_text("".join(kept))
        pictures = list(pictures_of(read_report(tmp_path)))
        assert list(write_pictures(pictures, tmp_path)) == ["goodput"]


def test_long_curves_keep_their_peaks() -> None:
    points = [(float(step), math.sin(step / 50)) for step in range(100_000)]
    points[777] = (777.0, 50.0)
    points[888] = (888.0, math.nan)
    kept = thinned(points)
    assert len(kept) <= MOST_POINTS
    assert (777.0, 50.0) in kept
    assert kept == sorted(kept)
    assert not any(math.isnan(value) for _, value in kept)
    assert thinned(points[:1000]) == points[:1000]


def test_missing_matplotlib_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(RootsError) as caught:
        write_pictures([Picture("a", "b", print)], tmp_path)
    assert caught.value.lines == (
        "plot: pictures need matplotlib, which cannot be imported here; pip install .[plots]",
    )
