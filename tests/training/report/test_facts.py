"""The report as text and as JSON, of one run whose numbers are known."""

from __future__ import annotations

import json
import re
from pathlib import Path

from roots.data.record import DataRecord, SideRecord, SourceRecord
from roots.errors import ExitCode
from roots.training.report.facts import duration, plain, text_lines
from roots.training.report.read import read_report
from tests.helpers.ledgers import FakeRun, killed_and_resumed, with_records

MOMENT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d")

HOST = re.compile(r"  \S+ +(?=[24] ranks = )")


def lines_of(folder: Path) -> list[str]:
    return [MOMENT.sub("WHEN", line) for line in text_lines(read_report(folder))]


def test_text_tells_all_of_a_run(tmp_path: Path) -> None:
    with_records(killed_and_resumed(tmp_path))
    lines = [HOST.sub("  HOST  ", line) for line in lines_of(tmp_path)]
    assert lines[:9] == [
        f"run       {tmp_path}",
        "steps     20 in 2 starts, done",
        "time      1m 44s since WHEN",
        "goodput   24.2%",
        "saves     2, training waits 2 s for each",
        "failures  1, one in 1m 02s of running",
        "loss      2.1500 at step 20",
        "held-out  2.5000, best 2.2500 at step 10",
        "skipped   1 steps, whose gradients were not finite",
    ]
    assert lines[10:19] == [
        "compute         19.3%  20 s    in steps",
        "communication    4.8%  5 s     waiting for other ranks",
        "evaluation       0.0%  0 s     on held-out data",
        "data             9.7%  10 s    waiting for the next batch",
        "checkpoint       3.9%  4 s     waiting for saves",
        "restart          9.7%  10 s    from a process' start until it trains",
        "other            4.8%  5 s     between steps",
        "lost             7.7%  8 s     work that was done again, or ended by an error",
        "idle            40.1%  41.5 s  nothing ran",
    ]
    assert lines[21:23] == [
        "WHEN  HOST  2 ranks = data 2, ZeRO 1    0 to 14   died",
        "WHEN  HOST  4 ranks = tensor 4, ZeRO 0  10 to 20  done",
    ]
    assert lines[24:] == [
        "forecast  a failure in 1m 02s of running, 2 s a save, 5 s a restart after 41.5 s idle",
        "in use    every 10 steps  20 s of work  goodput 26.2%",
        "Daly      every 7 steps   14 s of work  goodput 26.5%",
        "Young     every 8 steps   16 s of work  goodput 26.5%",
    ]


def test_json_has_the_same_numbers(tmp_path: Path) -> None:
    with_records(killed_and_resumed(tmp_path))
    tree = json.loads(json.dumps(plain(read_report(tmp_path)), allow_nan=False))
    assert tree["seconds"]["lost"] == 8.0
    assert sum(tree["seconds"].values()) == tree["wall_seconds"] == 103.5
    assert tree["goodput"] == 25 / 103.5
    assert (tree["steps"], tree["failures"], tree["failure_seconds"]) == (20, 1, 62.0)
    assert [start["code"] for start in tree["starts"]] == [None, 0]
    assert [start["saves"] for start in tree["starts"]] == [1, 1]
    assert [plan["name"] for plan in tree["forecast"]["plans"]] == ["in use", "Daly", "Young"]
    assert (tree["loss"], tree["held_out_loss"]) == (2.15, 2.5)


def test_saves_that_failed_and_copies_are_told_apart(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    ledger = run.start(0)
    run.save(ledger)
    for _ in range(3):
        ledger.copied()
    ledger.not_saved(1)
    assert "saves     1 (1 failed), 3 local copies, training waits 0.4 s for each" in lines_of(
        tmp_path
    )
    tree = plain(read_report(tmp_path))
    assert (tree["saves"], tree["failed_saves"], tree["local_copies"]) == (1, 1, 3)


def test_phases_of_the_data_are_told(tmp_path: Path) -> None:
    """Of a run that tries phase 1 at step 5, goes back to step 4, and on from there to phase 3."""
    run, source = FakeRun(tmp_path), SourceRecord("a", 1.0, (SideRecord(1, 2, "d"),))
    for step, phase, first_sample in (
        (0, 0, 0),
        (5, 1, 40),
        (4, 0, 0),
        (8, 2, 64),
        (9, 2, 64),
        (20, 3, 160),
    ):
        data = DataRecord(phase, first_sample, sources=(source,) * (1 + phase))
        ledger = run.start(step, data)
        run.steps(ledger, step + 1, step + 1)
    with_records(run)
    assert [line for line in lines_of(tmp_path) if line.startswith("data   ")][:2] == [
        "data      phase 2 from step 9: 3 datasets",
        # Nothing of it is in the records yet.
        "data      phase 3 from step 22: 4 datasets",
    ]
    assert plain(read_report(tmp_path))["phases"] == [
        {"phase": 2, "step": 9, "datasets": 3},
        {"phase": 3, "step": 22, "datasets": 4},
    ]


def test_communication_that_is_not_measured_is_said_to_be(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    run.start(0, communication=False).end(ExitCode.DONE)
    (line,) = [line for line in lines_of(tmp_path) if line.startswith("communication")]
    assert line.split(maxsplit=3)[1:] == [
        "-",
        "-",
        "part of compute: not measured on GPUs",
    ]
    assert plain(read_report(tmp_path))["seconds"]["communication"] is None


def test_a_run_without_failures_has_no_forecast(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    run.steps(run.start(0), 1, 2)
    run.start(0).end(ExitCode.INTERRUPTED)
    text = run.path.read_text().splitlines(keepends=True)
    run.path.write_text("".join(text[-4:]))
    lines = lines_of(tmp_path)
    assert lines[-1] == (
        "forecast  none: no failure in 5 s of running, so there is no rate to forecast from"
    )
    assert lines[1] == "steps     0 in 1 start, interrupted"
    assert plain(read_report(tmp_path))["forecast"] is None


def test_a_run_of_before_the_ledger_tells_what_it_has(tmp_path: Path) -> None:
    with_records(FakeRun(tmp_path))
    assert lines_of(tmp_path)[1:3] == [
        "ledger    none: the run was trained by a ROOTS that kept no account",
        "loss      2.1500 at step 20",
    ]
    assert plain(read_report(tmp_path))["loss"] == 2.15


def test_durations_have_decimals_where_they_matter() -> None:
    texts = [duration(seconds) for seconds in (0, 0.01234, 9.876, 59.9, 59.96, 3600)]
    assert texts == ["0 s", "0.0123 s", "9.88 s", "59.9 s", "1m 00s", "1h 00m"]
