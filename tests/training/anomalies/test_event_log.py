"""Lines of events: appended, never cut, and no reason to end a run."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest

from roots.training.anomalies.event_log import EventLog


def test_lines_are_appended_over_several_runs(tmp_path: Path) -> None:
    for step in (1, 2):
        EventLog(tmp_path / "e.jsonl").write(step=step, loss=math.nan, culprit="", back_to=None)
    first, second = (tmp_path / "e.jsonl").read_text().splitlines()
    assert json.loads(first) == {"step": 1, "loss": None, "culprit": "", "back_to": None}
    assert json.loads(second)["step"] == 2


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    EventLog(None).write(step=1)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_left_out_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = EventLog(tmp_path / "missing" / "e.jsonl")
    with caplog.at_level(logging.WARNING):
        for step in (1, 2):
            log.write(step=step)
    (record,) = caplog.records
    assert "e.jsonl cannot be written (No such file or directory)" in record.getMessage()
