"""Real ranks of which one dies, stops, rests or strays: the others name it in time and are gone."""

from __future__ import annotations

import math
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from roots.config.training import WatchdogConfig
from roots.errors import ExitCode, RootsError
from roots.lock import start_ticks
from roots.parallel.watchdog.record import Marks
from roots.parallel.watchdog.watch import Watch
from tests.helpers.faults import Ended, run_watched, steps

pytestmark = [pytest.mark.distributed]

SECONDS = 1.5
SECTION = WatchdogConfig(timeout_seconds=SECONDS)
RANKS = 4
FAULT_STEP = 4


def _nothing(number: int) -> None:
    """The data are there."""


def _groups() -> Callable[[int], None]:
    """A step of 4 ranks: a sum over pairs of neighbours, over the other pairs, and over all."""
    rank = dist.get_rank()
    pairs = [dist.new_group(ranks) for ranks in ([0, 1], [2, 3], [0, 2], [1, 3])]
    mine = [pairs[0 if rank < 2 else 1], pairs[2 if rank % 2 == 0 else 3]]

    def step(number: int) -> None:
        for group in (*mine, None):
            dist.all_reduce(torch.ones(8), group=group)

    return step


def _fault(folder: Path) -> None:
    (folder / "fault").touch()


def _only_line(ended: list[Ended], culprit: int) -> str:
    """The one line that all ranks together have said; all but the culprit exit with LOST."""
    said = "".join(each.stderr for each in ended)
    lines = [line for line in said.splitlines() if line.startswith("roots: error: ")]
    assert len(lines) == 1, said
    assert lines[0].startswith(f"roots: error: rank {culprit} on host {os.uname().nodename}: "), (
        said
    )
    others = [each for rank, each in enumerate(ended) if rank != culprit]
    assert {each.code for each in others} == {ExitCode.LOST}, said
    return lines[0]


def _signals(rank: int, marks: Marks, folder: Path, victim: int, number: int) -> None:
    step, pause = _groups(), threading.Event()

    def outlived(code: int, cause: str) -> None:
        victim = int((folder / "victim").read_text())
        # A process that was killed may wait for a processor before it is gone.
        tries = range(500)
        is_gone = any(start_ticks(victim) is None or pause.wait(0.01) for _ in tries)
        (folder / f"outlived_{rank}").write_text(f"{code}, {cause}, {is_gone}")

    def data(done: int) -> None:
        if rank == victim and done == FAULT_STEP:
            (folder / "victim").write_text(str(os.getpid()))
            _fault(folder)
            os.kill(os.getpid(), number)

    marks.outlived = outlived

    steps(marks, 1000, step, data)


@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_rank_is_named_at_once(tmp_path: Path, victim: int) -> None:
    ended = run_watched(_signals, RANKS, tmp_path, SECTION, tmp_path, victim, signal.SIGKILL)
    line = _only_line(ended, victim)
    assert re.search(r"has died, last step 3; it is missing in all_reduce number 4 over ", line)
    assert f"the ranks' stacks are in {tmp_path}/stacks; start again" in line
    assert ended[victim].code == -signal.SIGKILL
    assert max(each.seconds for each in ended) < SECONDS
    neighbour = victim + 1
    stack = (tmp_path / "stacks" / f"rank_{neighbour}.txt").read_text("utf-8")
    pair = f"{victim},{neighbour}"
    assert f"all_reduce number 4 over ranks {pair}, in a step after step 3" in stack
    assert "in step" in stack
    absent = (tmp_path / "stacks" / f"rank_{victim}.txt").read_text("utf-8")
    assert "no Python stack" in absent
    assert _told_of_rank_0(tmp_path) == (["7, rank 0 died, True"] if victim == 0 else [])


def _told_of_rank_0(folder: Path) -> list[str]:
    """What ranks tell its ledger of it, and whether it could write no more by then."""
    return [each.read_text() for each in folder.glob("outlived_*")]


@pytest.mark.parametrize("victim", [0, 2])
def test_a_stopped_rank_is_named_within_the_timeout_and_ended(tmp_path: Path, victim: int) -> None:
    ended = run_watched(_signals, RANKS, tmp_path, SECTION, tmp_path, victim, signal.SIGSTOP)
    line = _only_line(ended, victim)
    assert re.search(
        r"has not answered for \d s \(stopped, or its machine is gone\), last step 3", line
    )
    assert "; it is missing in all_reduce number 4 over ranks " in line
    assert ended[victim].code == -signal.SIGKILL
    assert SECONDS / 2 < max(each.seconds for each in ended) < SECONDS + 1
    assert _told_of_rank_0(tmp_path) == (["7, rank 0 stopped, True"] if victim == 0 else [])


def _die_together(rank: int, marks: Marks, folder: Path) -> None:
    """Rank 0, and as soon as it sees that, rank 1."""
    if rank == 1:
        Watch.speaks_without_hub = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore
    _signals(rank, marks, folder, 0, signal.SIGKILL)


def test_another_rank_speaks_where_rank_0_dies_and_the_next_with_it(tmp_path: Path) -> None:
    ended = run_watched(_die_together, RANKS, tmp_path, SECTION, tmp_path)
    said = "".join(each.stderr for each in ended)
    lines = [line for line in said.splitlines() if line.startswith("roots: error: ")]
    assert len(lines) == 1, said
    assert lines[0].startswith(f"roots: error: rank 0 on host {os.uname().nodename}: has died, ")
    assert [each.code for each in ended] == [-signal.SIGKILL] * 2 + [ExitCode.LOST] * 2
    assert max(each.seconds for each in ended) < 2 * SECONDS


def _rests(rank: int, marks: Marks, folder: Path) -> None:
    step = _groups()
    marks.cut_off = lambda code: print(code, file=(folder / f"noted_{rank}").open("w"), flush=True)

    def data(done: int) -> None:
        if rank == 1 and done == FAULT_STEP:
            _fault(folder)
            threading.Event().wait()

    steps(marks, 1000, step, data)


def test_a_rank_that_rests_in_its_data_is_named(tmp_path: Path) -> None:
    ended = run_watched(_rests, RANKS, tmp_path, SECTION, tmp_path)
    line = _only_line(ended, 1)
    assert re.search(
        r"has come no further for \d s in its data, last step 3; it is missing in ", line
    )
    # Its main thread cannot tell its end.
    assert (tmp_path / "noted_1").read_text() == "7\n"
    assert ended[1].code == ExitCode.LOST
    assert "in _rests" in (tmp_path / "stacks" / "rank_1.txt").read_text("utf-8")
    assert max(each.seconds for each in ended) < SECONDS + 1


def _strays(rank: int, marks: Marks, folder: Path, victim: int) -> None:
    step = _groups()

    def data(done: int) -> None:
        if rank == victim and done == FAULT_STEP:
            _fault(folder)
            dist.broadcast(torch.ones(3), 0)

    steps(marks, 1000, step, data)


@pytest.mark.parametrize("victim", [0, 3])
def test_a_rank_in_another_collective_is_named(tmp_path: Path, victim: int) -> None:
    ended = run_watched(_strays, RANKS, tmp_path, SECTION, tmp_path, victim)
    line = _only_line(ended, victim)
    assert "is in broadcast number 4 over ranks 0-3, in its data after step 3" in line
    assert "the others in all_reduce number 4 over ranks " in line
    assert ended[victim].code == ExitCode.LOST


def _evaluates_more(rank: int, marks: Marks, folder: Path) -> None:
    step = _groups()

    def data(done: int) -> None:
        if done == FAULT_STEP:
            marks.enter("evaluation")
            for _ in range(3 if rank == 2 else 2):
                dist.all_reduce(torch.ones(1))
            marks.enter("data")

    steps(marks, 1000, step, data)


def test_a_rank_that_evaluates_more_than_the_others_is_named(tmp_path: Path) -> None:
    ended = run_watched(_evaluates_more, RANKS, tmp_path, SECTION, tmp_path)
    line = _only_line(ended, 2)
    assert "is in all_reduce number 6 over ranks 0-3, in an evaluation after step 3" in line
    assert "in a step after step 3" in line


def _raises(rank: int, marks: Marks, folder: Path, victim: int, error: Exception) -> None:
    step = _groups()

    def data(done: int) -> None:
        if rank == victim and done == FAULT_STEP:
            _fault(folder)
            raise error

    steps(marks, 1000, step, data)


@pytest.mark.parametrize("victim", [0, 2])
def test_a_rank_that_leaves_with_an_error_speaks_for_all(tmp_path: Path, victim: int) -> None:
    error = RootsError("data.bin: is gone; put it back", exit_code=ExitCode.BAD_INPUT)
    ended = run_watched(_raises, RANKS, tmp_path, SECTION, tmp_path, victim, error)
    assert [each.code for each in ended] == [ExitCode.BAD_INPUT] * RANKS
    assert "".join(each.stderr for each in ended) == f"roots: error: {error.lines[0]}\n"
    assert not (tmp_path / "stacks").exists()


def _slow(rank: int, marks: Marks) -> None:
    """One rank computes, now and then, for longer than the timeout; then one rests in a save."""
    step = _groups()

    def work(number: int) -> None:
        if rank == 3 and number == 2:
            _compute_until(time.monotonic() + 1.6 * SECONDS)
        step(number)

    steps(marks, 3, work, _nothing)
    marks.enter("checkpoint")
    if rank == 0:
        threading.Event().wait(1.4 * SECONDS)
    dist.barrier()


def _compute_until(end: float) -> None:
    """A tenth of the time."""
    while time.monotonic() < end:
        began = time.thread_time()
        while time.thread_time() - began < 0.002:
            pass
        threading.Event().wait(0.02)


def test_a_rank_that_moves_slowly_is_left_in_peace(tmp_path: Path) -> None:
    ended = run_watched(_slow, RANKS, tmp_path, SECTION)
    assert [(each.code, each.stderr) for each in ended] == [(0, "")] * RANKS


def _computes_for_ever(rank: int, marks: Marks, folder: Path) -> None:
    def step(number: int) -> None:
        dist.all_reduce(torch.ones(1))

    def data(done: int) -> None:
        if rank == 1 and done == FAULT_STEP:
            _fault(folder)
            _compute_until(math.inf)

    steps(marks, 1000, step, data)


def test_computing_for_ever_is_named_after_the_longer_bound(tmp_path: Path) -> None:
    section = WatchdogConfig(timeout_seconds=0.5, busy_seconds=1.5)
    ended = run_watched(_computes_for_ever, 2, tmp_path, section, tmp_path)
    assert "has come no further for 2 s in its data" in _only_line(ended, 1)
