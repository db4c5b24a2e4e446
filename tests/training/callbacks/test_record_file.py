"""Lines of a course that is given up go when a run has made a step on another, and not before."""

from __future__ import annotations

import errno
import json
import logging
import os
from pathlib import Path

import pytest

from roots.training.callbacks.callback import MetricsCallback
from roots.training.callbacks.metrics import (
    EvaluationRecord,
    EvaluationWriter,
    MetricsWriter,
    SaveRecord,
    SaveWriter,
    read_evaluations,
)
from roots.training.callbacks.record_file import RecordFile
from tests.helpers.records import step_record

NAMES = ("metrics.jsonl", "evaluations.jsonl", "checkpoints.jsonl")


def opened(folder: Path, start: int) -> MetricsCallback:
    """What writes the records of a run in `folder` that goes on after `start` steps."""
    metrics, evaluations, saves = (folder / name for name in NAMES)
    return MetricsCallback(
        MetricsWriter(metrics, start),
        EvaluationWriter(evaluations, start),
        SaveWriter(saves, start),
    )


def steps_in(folder: Path) -> list[list[int]]:
    """The steps in the three files."""
    lines = [(folder / name).read_text().splitlines() for name in NAMES]
    return [[json.loads(line)["step"] for line in each] for each in lines]


@pytest.fixture
def course(tmp_path: Path) -> Path:
    """The records of a run that has made 8 steps."""
    callback = opened(tmp_path, 0)
    for step in range(1, 9):
        callback.on_step_end(step_record(step))
        if step % 2 == 0:
            callback.on_evaluate_end(step, 1.0)
            callback.on_checkpoint_end(tmp_path, SaveRecord(step, 1, 0.1, 0.1))
    callback.on_train_end()
    return tmp_path


def test_start_that_makes_no_step_leaves_the_records_of_what_another_goes_on_from(
    course: Path,
) -> None:
    whole = steps_in(course)
    for start in (0, 4):
        callback = opened(course, start)
        # An evaluation that was broken off is made up before the first step.
        callback.on_evaluate_end(start, 2.0)
        callback.on_train_end()
        assert steps_in(course) == whole
    # A copy on its machine of step 8, which the start before has passed by.
    callback = opened(course, 8)
    callback.on_step_end(step_record(9))
    callback.on_train_end()
    assert steps_in(course) == [[*whole[0], 9], *whole[1:]]


@pytest.mark.parametrize("start", [0, 4])
def test_first_step_drops_the_records_of_all_files(
    start: int, course: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = opened(course, start)
    callback.on_evaluate_end(start, 2.0)
    with caplog.at_level(logging.INFO):
        callback.on_step_end(step_record(start + 1))
    callback.on_train_end()
    even = [step for step in (2, 4) if step <= start]
    assert steps_in(course) == [list(range(1, start + 2)), [*even, start], even]
    assert read_evaluations(course / NAMES[1])[-1] == EvaluationRecord.of(start, 2.0)
    left = [8 - start, 4 - len(even), 4 - len(even)]
    assert caplog.messages == [
        f"{course / name}: dropped {count} records after step {start}"
        for name, count in zip(NAMES, left, strict=True)
    ]


def test_evaluation_before_the_first_step_of_all_is_written_at_once(tmp_path: Path) -> None:
    callback = opened(tmp_path, 0)
    callback.on_evaluate_end(0, 2.0)
    assert steps_in(tmp_path) == [[], [0], []]
    callback.on_train_end()


@pytest.mark.parametrize(
    ("number", "cure"),
    [
        (errno.EROFS, "make its file system writable"),
        (errno.EPERM, "give this user the rights to it"),
        (errno.EIO, "check the path and its disk"),
    ],
)
def test_why_nothing_can_be_written_decides_the_cure(
    number: int,
    cure: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    file = RecordFile(tmp_path / "a.jsonl")
    monkeypatch.setattr("roots.training.callbacks.record_file.append_whole", refuse)
    file.append(1, {"step": 1})
    file.append(2, {"step": 2})
    monkeypatch.undo()
    file.append(3, {"step": 3})
    file.close()
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 3
    assert caplog.messages == [
        f"{tmp_path}/a.jsonl: cannot be written ({os.strerror(number)}); training goes on, and "
        f"records wait in memory until it can be; {cure}",
        f"{tmp_path}/a.jsonl: is written again",
    ]
