"""What a report finds in the folder of a run, whole or in part."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from roots.errors import RootsError
from roots.lock import RUN_LOCK_NAME, Place, owned
from roots.training.report.read import RankTimes, read_rank_times, read_report
from tests.helpers.ledgers import FakeRun, killed_and_resumed, with_records


def test_a_whole_folder_is_read(tmp_path: Path) -> None:
    with_records(killed_and_resumed(tmp_path))
    report = read_report(tmp_path)
    assert report.account is not None
    assert (report.account.steps, report.account.failures) == (20, 1)
    assert report.forecast is not None
    assert (len(report.metrics), len(report.evaluations)) == (20, 2)
    assert report.rank_times[0] == RankTimes(5, (1.0, 1.5))
    assert report.name == tmp_path.name


def test_runs_without_a_ledger_or_without_records_are_read(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    with_records(FakeRun(tmp_path / "old"))
    old = read_report(tmp_path / "old")
    assert (old.account, old.forecast, len(old.metrics)) == (None, None, 20)
    (tmp_path / "new").mkdir()
    FakeRun(tmp_path / "new").start(0)
    new = read_report(tmp_path / "new")
    assert (new.metrics, new.evaluations, new.rank_times) == ((), (), ())
    assert new.account is not None


def test_a_run_runs_as_long_as_its_process_owns_the_folder(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    run.steps(run.start(0), 1, 2)
    with owned(tmp_path / RUN_LOCK_NAME, Place("run folder", "", "")):
        account = read_report(tmp_path).account
        assert account is not None
        assert (account.running, account.failures) == (True, 0)
        child = os.fork()
        if child == 0:
            # What a process that was killed leaves: its lock, with a pid that has ended.
            os._exit(0)
        os.waitpid(child, 0)
        text = (tmp_path / RUN_LOCK_NAME).read_text()
    (tmp_path / RUN_LOCK_NAME).write_text(text.replace(f'"pid": {os.getpid()}', f'"pid": {child}'))
    ended = run.clock.now
    os.utime(tmp_path / RUN_LOCK_NAME, (ended + 9, ended + 9))
    account = read_report(tmp_path).account
    assert account is not None
    assert (account.running, account.failures) == (False, 1)
    assert (account.starts[-1].ended, account.seconds["lost"]) == (ended + 9, 9.0)


def test_rank_times_of_steps_done_again_are_the_later_ones(tmp_path: Path) -> None:
    path = tmp_path / "rank_times.jsonl"
    assert read_rank_times(path) == ()
    path.write_text(
        '{"step": 5, "seconds": [1, 2]}\n{"step": 10, "seconds": [3, 4]}\n'
        '{"step": 10, "seconds": [5, 6, 7]}\n{"step": 15, "sec'
    )
    assert read_rank_times(path) == (RankTimes(5, (1.0, 2.0)), RankTimes(10, (5.0, 6.0, 7.0)))


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RootsError) as caught:
        read_report(tmp_path / "nowhere")
    assert caught.value.lines == (
        f"{tmp_path}/nowhere: holds neither ledger.jsonl nor metrics.jsonl, so no run has trained "
        "there; name the folder of a run",
    )
