"""Lines of events: of the course that the run is on, and no reason to end a run."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest

from roots.training.anomalies.event_log import EventLog


def steps_in(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_lines_are_appended_over_several_starts(tmp_path: Path) -> None:
    for step in (1, 2):
        log = EventLog(tmp_path / "e.jsonl", step - 1)
        log.write(step=step, loss=math.nan, culprit="", back_to=None)
        log.close()
    first, second = (tmp_path / "e.jsonl").read_text().splitlines()
    assert json.loads(first) == {"step": 1, "loss": None, "culprit": "", "back_to": None}
    assert json.loads(second)["step"] == 2


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    log = EventLog(None)
    log.write(step=1)
    log.begin()
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_without_an_event_there_is_no_file(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "e.jsonl")
    log.begin()
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_first_step_drops_the_events_of_a_course_that_was_given_up(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    log = EventLog(path)
    for step in (2, 5, 7):
        log.write(step=step, samples=[8 * step, 8 * step + 7])
    log.close()
    EventLog(path, 4).close()
    assert steps_in(path) == [2, 5, 7]
    log = EventLog(path, 4)
    log.begin()
    log.close()
    assert steps_in(path) == [2]
    log = EventLog(path)
    log.begin()
    log.close()
    assert steps_in(path) == []


def test_what_the_checkpoint_remembers_stays_though_its_step_comes_again(tmp_path: Path) -> None:
    """Step 4 was bad, and the run went back to 2; it goes on from a checkpoint of 3."""
    path = tmp_path / "e.jsonl"
    log = EventLog(path)
    for step, samples in ((4, [24, 31]), (5, [40, 47])):
        log.write(step=step, samples=samples)
    log.close()
    log = EventLog(path, 3, [[24, 32]])  # type: ignore[list-item]  # as JSON has it
    log.begin()
    log.close()
    assert steps_in(path) == [4]


def test_lines_wait_while_the_file_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "e.jsonl"
    path.symlink_to("/dev/full")
    log = EventLog(path)
    with caplog.at_level(logging.WARNING):
        for step in (1, 2):
            log.write(step=step)
        log.close()
    assert caplog.messages == [
        f"{path}: cannot be written (No space left on device); training goes on, and records wait "
        "in memory until it can be; free some disk space",
        f"{path}: 2 records were not written",
    ]
