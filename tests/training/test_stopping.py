"""What stops a run before its last step: the reasons, their order, and the clock."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from roots.config import RunConfig, parse_config
from roots.device import Device
from roots.errors import RootsError
from roots.parallel.mesh import Mesh
from roots.parallel.topology import Topology
from roots.planner.parameters import count_parameters
from roots.training.signals import StopSignals
from roots.training.stopping import Deadline, Feed, Reason, Stopping, deadline_of
from tests.helpers.distributed import run_distributed


class Clock:
    """A clock that goes where it is told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_deadline_leaves_time_for_a_step_and_a_save() -> None:
    clock = Clock()
    deadline = Deadline(100.0, 2.0, 8.0, clock)
    assert not deadline.due()
    assert deadline.needed_seconds() == 1.25 * 8 + 2
    for clock.now in (4.0, 7.0, 11.0):
        assert not deadline.due()
    # The longest of the last steps counts, and what was measured of a save in place of the guess.
    assert deadline.needed_seconds() == 1.25 * (4 + 8) + 2
    with deadline.saving():
        clock.now = 31.0
    deadline.note_save(20.0)
    clock.now = 35.0
    assert not deadline.due()
    assert deadline.needed_seconds() == 1.25 * (4 + 20) + 2
    clock.now = 68.0
    # 68 + 1.25 * (33 + 20) + 2 is beyond 100.
    assert deadline.due()


def test_save_in_flight_has_to_end_before_the_last_begins() -> None:
    clock = Clock()
    deadline = Deadline(20.0, 0.0, 8.0, clock)
    assert not deadline.due()
    assert not deadline.due(busy=True)
    clock.now = 1.0
    assert not deadline.due()
    assert deadline.due(busy=True)


def test_deadline_forgets_the_first_steps() -> None:
    clock = Clock()
    deadline = Deadline(1e9, clock=clock)
    for clock.now in (0.0, 60.0, *range(61, 78)):
        deadline.due()
    assert deadline.needed_seconds() == 1.25


def test_without_a_limit_there_is_always_time() -> None:
    assert not Deadline(clock=lambda: 1e12).due()


def config_with(**stop: object) -> RunConfig:
    return parse_config({"stop": stop})


def test_wall_clock_counts_from_the_start_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOTS_JOB_START", "1000")
    deadline = deadline_of(config_with(wall_clock="0-01:00:00", margin_seconds=5))
    size = count_parameters(config_with().model).total
    # Until a save was measured, 16 bytes a parameter at 200 MB/s, or a tenth of the time.
    assert deadline.needed_seconds() == pytest.approx(1.25 * min(16 * size / 200e6, 360) + 5)
    assert deadline._end == 4600
    monkeypatch.delenv("ROOTS_JOB_START")
    assert not deadline_of(config_with(wall_clock=1e6)).due()
    assert deadline_of(config_with(wall_clock=0.001)).due()


def test_slurm_says_when_its_job_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", "5000")
    assert deadline_of(config_with(wall_clock="slurm"))._end == 5000
    monkeypatch.delenv("SLURM_JOB_END_TIME")
    with pytest.raises(RootsError) as caught:
        deadline_of(config_with(wall_clock="slurm"))
    assert str(caught.value) == (
        "stop.wall_clock='slurm': needs SLURM_JOB_END_TIME, which Slurm sets in a job with a time "
        "limit; give the time as [D-]HH:MM:SS or in seconds"
    )


def test_number_of_seconds_from_the_environment_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOTS_JOB_START", "today")
    with pytest.raises(RootsError, match="ROOTS_JOB_START='today': must be seconds since 1970"):
        deadline_of(config_with(wall_clock="60"))


@pytest.mark.parametrize(
    "error, line",
    [
        (RootsError("a line"), "a line"),
        (FileNotFoundError(2, "No such file or directory", "x.idx"), "x.idx: No such file or"),
    ],
)
def test_feed_keeps_the_error_of_a_read(error: Exception, line: str) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise error

    feed = Feed(items())
    assert (feed.advance().item, feed.failure) == (1, None)
    assert feed.advance().item is None
    assert str(feed.failure).startswith(line)
    assert Feed(iter([])).advance().failure is None


def decisions(rank: int, world_size: int, reasons: tuple[str, ...]) -> tuple[str, list[str]]:
    """What a rank decides for which `reasons` has "signal", "clock", "data" or nothing."""
    mine = reasons[rank]
    with StopSignals() as signals:
        deadline = Deadline(0.0 if mine == "clock" else None)
        stopping = Stopping(
            Mesh.create(Topology(data=world_size)), Device("cpu", 0), signals, deadline
        )
        if mine == "signal":
            signal.raise_signal(signal.SIGUSR1)
        failure = RootsError("no data") if mine == "data" else None
        stopped = stopping.decide(failure)
        assert stopped == stopping.decide()
        return stopping.describe() if stopped else "", stopping.data_lines()


def test_all_ranks_stop_for_the_reason_of_any() -> None:
    assert run_distributed(both, 2) == [
        [
            ("", []),
            ("SIGUSR1", []),
            ("stop.wall_clock", []),
            ("its data", ["no data"]),
        ],
        [
            ("", []),
            ("a signal on another rank", []),
            ("stop.wall_clock", []),
            ("its data", ["no data"]),
        ],
    ]


def both(rank: int, world_size: int) -> list[tuple[str, list[str]]]:
    cases = (("", ""), ("signal", "clock"), ("clock", ""), ("clock", "data"))
    return [decisions(rank, world_size, case) for case in cases]


def test_reasons_rank_by_how_much_they_ask() -> None:
    assert Reason.NONE < Reason.WALL_CLOCK < Reason.SIGNAL < Reason.DATA
