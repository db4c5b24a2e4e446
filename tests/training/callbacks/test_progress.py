"""The live line on a terminal, and plain lines elsewhere."""

from __future__ import annotations

import dataclasses
import io
import logging
import math
import os
import pty
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from roots.log import let_go_of_output
from roots.training.callbacks.metrics import SaveRecord
from roots.training.callbacks.progress import Progress, format_duration
from tests.helpers.records import step_record


def ticking(seconds: float) -> Callable[[], float]:
    """A clock that advances by `seconds` with every reading."""
    now = [0.0]

    def clock() -> float:
        now[0] += seconds
        return now[0]

    return clock


def plain(total_steps: int, every: int) -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, soft_wrap=True, highlight=False)
    return Progress(total_steps, every, console, ticking(10.0)), out


def test_plain_lines_come_at_the_interval_and_at_the_end() -> None:
    progress, out = plain(25, 10)
    progress.start()
    for step in range(1, 26):
        progress.update(step_record(step))
    progress.stop()
    assert [line.split()[1] for line in out.getvalue().splitlines()] == ["10/25", "20/25", "25/25"]


def test_plain_line_holds_what_a_person_wants_to_know() -> None:
    progress, out = plain(20, 10)
    progress.update(step_record(10, loss=4.25, lr=3e-4, tokens_per_second=12345.6, mfu=0.412))
    assert out.getvalue() == (
        "step 10/20  loss 4.2500  lr 0.0003  12,346 tokens/s  MFU 41.2%  2s left\n"
    )


def test_plain_output_has_no_control_characters_and_is_never_wrapped() -> None:
    progress, out = plain(3_000_000_000, 1)
    progress.start()
    progress.update(step_record(2_000_000_000, skipped=True, tokens_per_second=1e13))
    progress.show_evaluation(2_000_000_000, 3.5)
    progress.stop()
    assert len(out.getvalue().splitlines()) == 2
    assert "\x1b" not in out.getvalue()
    assert "\r" not in out.getvalue()
    assert "skipped (overflow)" in out.getvalue()


@pytest.mark.parametrize("launcher", ["", "OMPI_COMM_WORLD_RANK", "PMIX_RANK"])
def test_terminal_that_a_launcher_gives_a_rank_gets_plain_lines(
    monkeypatch: pytest.MonkeyPatch, launcher: str
) -> None:
    """mpirun copies what it reads there into a log, in which lines cannot be written over."""
    for name in ("OMPI_COMM_WORLD_RANK", "PMIX_RANK"):
        monkeypatch.delenv(name, raising=False)
    if launcher:
        monkeypatch.setenv(launcher, "0")
    monkeypatch.setenv("TERM", "xterm")
    reader, writer = pty.openpty()
    with os.fdopen(reader, "rb", buffering=0) as seen, os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        progress = Progress(2, 1)
        progress.start()
        progress.update(step_record(1))
        progress.stop()
        stream.flush()
        text = seen.read(65536).decode()
    assert "step 1/2  loss " in text
    assert ("\x1b" in text) == (not launcher)


def test_time_left_follows_the_pace_after_the_first_step() -> None:
    progress, out = plain(100, 1)
    for step in (1, 2, 3):
        progress.update(step_record(step, step_seconds=999.0))
    last = out.getvalue().splitlines()[-1]
    assert last.endswith("16m 10s left")  # 97 steps at 10 s by the clock


def test_time_left_counts_only_the_steps_of_this_process() -> None:
    progress, out = plain(1000, 1)
    for step in (901, 902):
        progress.update(step_record(step))
    assert out.getvalue().splitlines()[-1].endswith("16m 20s left")


def test_evaluation_has_its_line_and_stays_in_the_next_ones() -> None:
    progress, out = plain(20, 1)
    progress.show_evaluation(10, 3.75)
    progress.update(step_record(11))
    first, second = out.getvalue().splitlines()
    assert first == "step 10/20  held-out loss 3.7500"
    assert "held-out 3.7500" in second


def test_not_finite_numbers_are_shown() -> None:
    progress, out = plain(20, 1)
    progress.update(step_record(1, loss=math.nan, step_seconds=math.inf))
    assert "loss nan" in out.getvalue()
    assert "? left" in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0s"),
        (59.4, "59s"),
        (59.6, "1m 00s"),
        (185, "3m 05s"),
        (7620, "2h 07m"),
        (443000, "5d 03h"),
        (math.nan, "?"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def terminal(monkeypatch: pytest.MonkeyPatch) -> tuple[Console, io.StringIO, io.StringIO]:
    out, error = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", error)
    return Console(force_terminal=True, width=120, highlight=False), out, error


def test_live_line_is_redrawn_for_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    console, out, _ = terminal(monkeypatch)
    progress = Progress(30, 10, console, ticking(1.0))
    progress.start()
    for step in (1, 2, 3):
        progress.update(step_record(step))
    progress.stop()
    shown = out.getvalue()
    for step in (1, 2, 3):
        assert f"step {step}/30" in shown
    assert shown.count("\x1b[2K") >= 2  # every step but the first erases the line before it
    assert shown.count("\n") == 1


def test_log_lines_go_above_the_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    console, out, error = terminal(monkeypatch)
    logger = logging.getLogger("roots-progress-test")
    handler = logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    progress = Progress(30, 10, console, ticking(1.0))
    try:
        progress.start()
        progress.update(step_record(1))
        logger.warning("a line from elsewhere")
        progress.update(step_record(2))
        progress.stop()
        logger.warning("after the run")
    finally:
        logger.removeHandler(handler)
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue()).replace("\r", "\n").split("\n")
    assert "a line from elsewhere" in [line.strip() for line in lines]
    assert error.getvalue() == "after the run\n"
    assert handler.stream is error


def test_stopping_restores_the_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    console, out, error = terminal(monkeypatch)
    progress = Progress(30, 10, console)
    progress.start()
    progress.stop()
    progress.stop()
    assert sys.stdout is out
    assert sys.stderr is error


@pytest.mark.parametrize("width", [50, 80, 200])
def test_time_left_is_never_cut(width: int) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, highlight=False)
    progress = Progress(1_000_000, 1, console, ticking(10.0))
    progress.start()
    progress.show_evaluation(1, 4.1234)
    for step in (1, 2):
        progress.update(step_record(step, lr=3e-4, tokens_per_second=123456.7, mfu=0.412))
    progress.stop()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).splitlines()
    last = next(line for line in reversed(shown) if line.startswith("step 2/"))
    assert "115d 17h left" in last
    assert ("MFU" in last) == ("lr" in last) == (width == 200)
    assert ("tokens/s" in last) == (width >= 80)


def test_saved_checkpoint_has_its_line() -> None:
    progress, out = plain(20, 10)
    small = SaveRecord(step=10, bytes=9_000_000, stall_seconds=0.25, write_seconds=2.0)
    large = dataclasses.replace(small, bytes=2_440_000_000)
    path = "runs/a/checkpoints/step_00000010"
    for saved in (small, large, dataclasses.replace(large, disk_share=0.917)):
        progress.show_checkpoint(Path(path), saved)
    assert out.getvalue().splitlines() == [
        f"saved {path}",
        f"saved {path} (2.4 GB, 1.22 GB/s, training waited 0.2 s)",
        f"saved {path} (2.4 GB, 1.22 GB/s, 92% of the disk's, training waited 0.2 s)",
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
def test_stdout_without_room_or_reader_is_no_reason_to_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    for target in ("/dev/full", writer):
        with open(target, "w", encoding="utf-8") as stdout:
            monkeypatch.setattr(sys, "stdout", stdout)
            progress = Progress(2, 1)
            progress.start()
            for step in (1, 2):
                progress.update(step_record(step))
                progress.show_evaluation(step, 4.0)
                progress.show_checkpoint(Path("somewhere"), SaveRecord(step, 1, 0.0, 0.0))
            progress.stop()
            # As at the end of the process, which would have an exit code of Python's own otherwise.
            let_go_of_output()
            stdout.write("more")
            stdout.flush()
