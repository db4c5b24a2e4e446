"""The ledger: every second in one category, whole lines, and no run that ends for its sake."""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
from io import FileIO
from pathlib import Path

import pytest

from roots.data.record import DataRecord
from roots.errors import ExitCode, RootsError
from roots.files import append_whole
from roots.parallel.watchdog.record import Marks
from roots.training.callbacks.ledger import CATEGORIES, LINE_SECONDS, RESERVE_BYTES, Ledger
from tests.helpers.ledgers import FACTS, Clock, FakeRun


@pytest.fixture
def run(tmp_path: Path) -> FakeRun:
    return FakeRun(tmp_path)


def total(run: FakeRun, category: str) -> float:
    return sum(line["seconds"].get(category, 0.0) for line in run.lines())


def test_every_second_is_in_one_category(run: FakeRun) -> None:
    began = run.clock.now
    ledger = run.start(0)
    run.steps(ledger, 1, 4)
    run.save(ledger)
    with ledger.span("evaluation"):
        run.clock.pass_(3)
    assert ledger.end(ExitCode.DONE) is ExitCode.DONE
    sums = {name: total(run, name) for name in CATEGORIES}
    assert sums == {
        "restart": 5.0,
        "data": 2.0,
        "compute": 4.0,
        "communication": 1.0,
        "other": 1.0,
        "checkpoint": 2.0,
        "evaluation": 3.0,
        "lost": 0.0,
    }
    assert sum(sums.values()) == run.clock.now - began


def test_waiting_in_collectives_is_communication_of_steps_alone(tmp_path: Path) -> None:
    """Half of every second is waiting: that counts in a step and after it, but not in a save."""
    run = FakeRun(tmp_path)
    ledger = Ledger(run.path, clock=run.clock, wall=run.clock)
    ledger.met(lambda: run.clock.now / 2 + 100)
    ledger.begin(0)
    for category in ("data", "compute", "checkpoint"):
        with ledger.span(category):
            run.clock.pass_(4)
    run.clock.pass_(2)
    ledger.end(ExitCode.DONE)
    sums = {name: total(run, name) for name in ("data", "compute", "checkpoint", "other")}
    assert sums == {"data": 4.0, "compute": 2.0, "checkpoint": 4.0, "other": 1.0}
    assert total(run, "communication") == 3.0


def test_lines_say_what_they_are(run: FakeRun) -> None:
    began = run.clock.now
    ledger = run.start(7, DataRecord(2, 40))
    run.steps(ledger, 8, 8)
    run.save(ledger, whole=False)
    ledger.written(8, 1.5, 4096)
    ledger.rewound(7)
    ledger.end(ExitCode.INTERRUPTED)
    start, met, *others = run.lines()
    assert (start["event"], start["version"], start["started"]) == ("start", 1, began)
    assert start["pid"] == os.getpid()
    assert "found" not in start
    assert met["event"] == "met"
    assert {name: met[name] for name in FACTS} == FACTS
    assert met["communication"] is True
    assert [(line["event"], line["step"]) for line in others] == [
        ("data", 0),
        ("begin", 7),
        ("steps", 8),
        ("save", 8),
        ("written", 8),
        ("steps", 8),
        ("rewind", 7),
        ("end", 7),
    ]
    data, written, end = others[0], others[4], others[-1]
    assert (data["phase"], data["first_sample"], data["datasets"]) == (2, 40, 0)
    assert (written["saved"], written["took"], written["bytes"]) == (8, 1.5, 4096)
    assert end["code"] == 3


def test_quick_steps_share_a_line(run: FakeRun) -> None:
    ledger = run.start(0)
    for step in range(1, 101):
        with ledger.span("compute"):
            run.clock.pass_(LINE_SECONDS / 8)
        ledger.step_done(step)
    lines = [line for line in run.lines() if line["event"] == "steps"]
    assert [line["step"] for line in lines] == list(range(8, 101, 8))
    assert {line["seconds"]["compute"] for line in lines} == {LINE_SECONDS}


@pytest.mark.parametrize(
    "error, code",
    [
        (RootsError("x"), ExitCode.BAD_INPUT),
        (RootsError("x", exit_code=ExitCode.DIVERGED), ExitCode.DIVERGED),
        (ValueError("x"), ExitCode.BUG),
        (KeyboardInterrupt(), ExitCode.BUG),
    ],
)
def test_an_error_is_an_end_and_its_step_is_lost(
    run: FakeRun, error: BaseException, code: ExitCode
) -> None:
    ledger = run.start(0)
    run.steps(ledger, 1, 1)
    # These two find no line: they stay what they are, and the fourth is lost.
    ledger._written = run.clock.now + 100
    run.steps(ledger, 2, 3)

    def step() -> None:
        with ledger:
            with ledger.span("data"):
                run.clock.pass_(1)
            with ledger.span("compute"):
                run.clock.pass_(60)
                raise error

    with pytest.raises(type(error)):
        step()
    end = run.lines()[-1]
    assert (end["event"], end["code"], end["step"]) == ("end", int(code), 3)
    assert end["seconds"] == {
        "data": 1.0,
        "compute": 2.0,
        "communication": 0.5,
        "other": 0.5,
        "lost": 61.0,
    }


def test_the_watchdog_notes_the_end_of_a_process_that_hangs(tmp_path: Path) -> None:
    run, marks = FakeRun(tmp_path), Marks()
    ledger = Ledger(run.path, clock=run.clock, wall=run.clock, marks=marks)
    ledger.begin(0)
    run.steps(ledger, 1, 1)
    with ledger.span("compute"):
        run.clock.pass_(60)
        thread = threading.Thread(target=marks.cut_off, args=(7,))
        thread.start()
        thread.join()
    # Nothing of what the main thread may still say comes after it.
    ledger.step_done(2)
    ledger.end(ExitCode.BUG)
    end = run.lines()[-1]
    assert (end["event"], end["code"], end["step"]) == ("end", 7, 1)
    assert end["seconds"] == {"lost": 60.0}


def test_leaving_without_an_error_is_done(run: FakeRun) -> None:
    with run.start(0):
        pass
    assert [line["event"] for line in run.lines()] == ["start", "met", "begin", "end"]
    assert run.lines()[-1]["code"] == 0


def test_what_a_crash_left_of_a_line_ends_where_the_next_begins(run: FakeRun) -> None:
    run.path.write_text('{"event": "start"}\n{"event": "ste')
    run.start(0)
    first, torn, *rest = run.path.read_text().splitlines()
    assert (first, torn) == ('{"event": "start"}', '{"event": "ste')
    assert len(rest) == 3


def test_failing_writes_warn_once_and_are_made_up_for(
    run: FakeRun, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("roots"), "propagate", True)
    ledger = run.start(0)
    run.steps(ledger, 1, 1)
    kept = run.path.read_bytes()
    run.path.unlink()
    run.path.mkdir()
    ledger._close()
    run.steps(ledger, 2, 3)
    run.save(ledger, whole=False)
    run.steps(ledger, 4, 5)
    run.path.rmdir()
    run.path.write_bytes(kept)
    run.steps(ledger, 6, 6)
    # What found no room is there, seconds and saves, but for how they were cut into lines.
    events = ["start", "met", "begin", "steps", "save", "steps"]
    assert [line["event"] for line in run.lines()] == events
    assert (total(run, "compute"), total(run, "checkpoint")) == (6.0, 2.0)
    assert [record.getMessage() for record in caplog.records] == [
        f"{run.path} cannot be written (Is a directory); the run goes on, and it is tried again"
    ]


def test_full_disk_never_ends_a_run(run: FakeRun) -> None:
    run.path.symlink_to("/dev/full")
    ledger = run.start(0)
    run.steps(ledger, 1, 50)
    run.save(ledger, whole=False)
    assert ledger.end(ExitCode.DONE) is ExitCode.DONE
    # The lines of steps are not kept: what is owed does not grow with the run.
    assert len(ledger._owed) == 5


def test_the_end_of_a_run_on_a_full_disk_has_room(
    run: FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve = run.folder / "ledger.reserve"
    ledger = run.start(0)
    assert reserve.stat().st_blocks * 512 >= RESERVE_BYTES

    def append(file: FileIO, line: bytes, end: int) -> int:
        if reserve.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return append_whole(file, line, end)

    monkeypatch.setattr("roots.training.callbacks.ledger.append_whole", append)
    run.steps(ledger, 1, 2)
    ledger.not_saved(2)
    ledger.end(ExitCode.NOT_SAVED)
    assert [line["event"] for line in run.lines()] == ["start", "met", "begin", "failed", "end"]
    assert (run.lines()[-1]["code"], total(run, "compute")) == (6, 2.0)
    assert not reserve.exists()


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Ledger() as ledger:
        ledger.start()
        ledger.begin(0)
        with ledger.span("checkpoint"):
            pass
        ledger.step_done(1)
        ledger.saved()
    assert list(tmp_path.iterdir()) == []


def test_another_rank_tells_the_end_of_one_that_was_torn_out_of_its_line(run: FakeRun) -> None:
    run.steps(run.start(0), 1, 2)
    with run.path.open("a") as file:
        file.write('{"event": "ste')
    other = Ledger(clock=run.clock, wall=run.clock)
    other.begin(0)
    other.step_done(3)
    run.clock.pass_(7)
    other.tell_end(run.path, 7, "rank 0 died")
    torn, end = run.path.read_text().splitlines()[-2:]
    assert torn == '{"event": "ste'
    assert json.loads(end) == {
        "event": "end",
        "time": run.clock.now,
        "step": 3,
        "code": 7,
        "cause": "rank 0 died",
        "seconds": {},
    }
    assert not (run.folder / "ledger.reserve").exists()


def test_no_ledger_begins_with_the_end_of_another_rank(tmp_path: Path) -> None:
    """Where hosts share no disk, only that of rank 0 has one."""
    Ledger().tell_end(tmp_path / "ledger.jsonl", 7, "rank 0 died")
    assert list(tmp_path.iterdir()) == []


def test_a_clock_that_is_set_back_counts_nothing_twice(tmp_path: Path) -> None:
    clock, wall = Clock(0.0), Clock(100.0)
    ledger = Ledger(tmp_path / "ledger.jsonl", started=200.0, clock=clock, wall=wall)
    ledger.start()
    clock.pass_(3)
    wall.pass_(-50)
    ledger.begin(0)
    run = FakeRun(tmp_path)
    assert total(run, "restart") == 3.0
