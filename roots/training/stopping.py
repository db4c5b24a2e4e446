"""Why a run stops before its last step: a signal, the clock or its data, agreed on by all ranks.

A step needs all ranks, so that none may stop alone. Each asks `Stopping.decide` at the same places:
before every step and every batch of an evaluation. Communication: one all-reduce of two numbers.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Generic, TypeVar

import torch

from roots.config.run import RunConfig
from roots.config.training import UNTIL_SLURM_JOB_ENDS, wall_clock_seconds
from roots.device import Device, job_start, slurm_job_end
from roots.errors import RootsError, problem
from roots.parallel.mesh import Mesh
from roots.parallel.process import all_gather_object, all_reduce_max
from roots.planner.parameters import count_parameters
from roots.training.signals import StopSignals

Item = TypeVar("Item")

# Laps that count: the first steps warm up, and an evaluation's batches are of another length.
_LAPS = 16
# What was measured may take so much longer the next time.
_LONGER = 1.25
# Until a save was measured: fp32 master weights, moments and weights, written at 200 MB/s.
_SAVED_BYTES, _WRITTEN_BYTES_PER_SECOND = 16, 200e6
# But no larger share of the time that the job has.
_LARGEST_SHARE = 0.1


class Reason(IntEnum):
    """Why a run stops; where ranks have different reasons, the greatest counts."""

    NONE = 0
    WALL_CLOCK = 1
    SIGNAL = 2
    DATA = 3


class Feed(Generic[Item]):
    """What an iterator gives, one after the other: None at its end, or where reading failed.

    The error of a failed read stays in `failure` until all ranks know of it.
    """

    def __init__(self, items: Iterator[Item]) -> None:
        self._items = items
        self.item: Item | None = None
        self.failure: RootsError | None = None

    def advance(self) -> Feed[Item]:
        """Read the next item."""
        self.item = None
        try:
            self.item = next(self._items, None)
        except RootsError as error:
            self.failure = error
        except OSError as error:
            self.failure = RootsError(f"{error.filename or 'data'}: {error.strerror or error}")
        return self


class Deadline:
    """The time that a run has: `due` as soon as a further step would leave none for saving it.

    `end`: in seconds of `clock`, None for no limit; `first_save_seconds`: of a save until one was
    measured.
    """

    def __init__(
        self,
        end: float | None = None,
        margin_seconds: float = 0.0,
        first_save_seconds: float = 0.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._end = end
        self._margin = margin_seconds
        self._first_save = first_save_seconds
        self._clock = clock
        self._laps: deque[float] = deque(maxlen=_LAPS)
        self._saves: deque[float] = deque(maxlen=_LAPS)
        self._since: float | None = None

    def due(self, busy: bool = False) -> bool:
        """Whether the time is up; called once a lap, between two steps.

        `busy`: a checkpoint is still being written, which the one at the end has to wait for.
        """
        now = self._clock()
        if self._since is not None:
            self._laps.append(now - self._since)
        self._since = now
        return self._end is not None and now + self.needed_seconds(1 + busy) > self._end

    def needed_seconds(self, saves: int = 1) -> float:
        """What a further step and the `saves` after it may take, with what is to stay free."""
        lap, save = max(self._laps, default=0.0), max(self._saves, default=self._first_save)
        return _LONGER * (lap + saves * save) + self._margin

    def note_save(self, seconds: float) -> None:
        """How long a save has taken from its begin to its end, beside training or not."""
        self._saves.append(seconds)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """The begin or the end of a save, which belongs to no lap."""
        try:
            yield
        finally:
            self._since = self._clock()


def deadline_of(config: RunConfig) -> Deadline:
    """The deadline that `stop.wall_clock` sets. Raises RootsError where Slurm does not tell one."""
    wish, start = config.stop.wall_clock, job_start()
    if wish is None:
        return Deadline()
    if wish == UNTIL_SLURM_JOB_ENDS:
        end = slurm_job_end()
        if end is None:
            rule = "needs SLURM_JOB_END_TIME, which Slurm sets in a job with a time limit"
            fix = "give the time as [D-]HH:MM:SS or in seconds"
            raise RootsError(problem("stop.wall_clock", wish, rule, fix))
    else:
        end = start + wall_clock_seconds(wish)
    size = count_parameters(config.model).total
    first_save = size * _SAVED_BYTES / _WRITTEN_BYTES_PER_SECOND
    return Deadline(
        end, config.stop.margin_seconds, min(first_save, _LARGEST_SHARE * max(0.0, end - start))
    )


class Stopping:
    """Whether all ranks stop, and why: once decided it stays so."""

    def __init__(
        self, mesh: Mesh, device: Device, signals: StopSignals, deadline: Deadline
    ) -> None:
        self.reason = Reason.NONE
        self.busy = False  # whether any rank was, when they last decided
        self.deadline = deadline
        self._mesh = mesh
        self._device = device
        self._signals = signals
        self._failures: list[RootsError] = []

    def decide(self, failure: RootsError | None = None, busy: bool = False) -> bool:
        """Whether the ranks stop here; `failure`: why this one has no data for what comes next.

        `busy`: this rank is still writing a checkpoint.
        """
        if self.reason is Reason.NONE:
            mine = [float(self._mine(failure, busy)), float(busy)]
            votes = all_reduce_max(self._mesh.world, torch.tensor(mine, device=self._device.torch))
            reason, anyone_busy = votes.tolist()
            self.reason, self.busy = Reason(int(reason)), bool(anyone_busy)
        return self.reason is not Reason.NONE

    def describe(self) -> str:
        """What stopped the run, for the log."""
        if self.reason is Reason.SIGNAL:
            return self._signals.received or "a signal on another rank"
        return "stop.wall_clock" if self.reason is Reason.WALL_CLOCK else "its data"

    def data_lines(self) -> list[str]:
        """Why any of the ranks could not read its data, on each of them; empty if all could."""
        if self.reason is not Reason.DATA:
            return []
        mine = [line for failure in self._failures for line in failure.lines]
        parts = all_gather_object(self._mesh.world, mine)
        return list(dict.fromkeys(line for part in parts for line in part))

    def _mine(self, failure: RootsError | None, busy: bool) -> Reason:
        late = self.deadline.due(busy)
        if failure is not None:
            self._failures.append(failure)
            return Reason.DATA
        if self._signals.stop_requested():
            return Reason.SIGNAL
        return Reason.WALL_CLOCK if late else Reason.NONE
