"""Where the time of a run went, over all its starts: what its ledger says, and what follows.

Besides the categories of callbacks/ledger.py there is what only shows afterwards:

    lost  besides steps that an error ended, those that were done again, since a later start went
          on from before them: compute, communication, data, evaluations and what lay between them
    idle  from the last sign of a start to the start of the next process, unless the run was done.
          Where all ranks are killed at once this begins up to a quarter of a second, or a step,
          early; of longer steps and starts up to the ten seconds between two signs.

Where another rank tells the end of rank 0, or its lock shows that it lived on after its last line,
the time from that line on is restart before training began, and lost after it.

All categories add up to the wall time, from the first process' start to the last line. The goodput
is the share of it spent in compute, communication and evaluation that was not lost.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roots.errors import ExitCode, RootsError, problem
from roots.training.callbacks.ledger import CATEGORIES, VERSION

ALL_CATEGORIES = (*CATEGORIES, "idle")
USEFUL = ("compute", "communication", "evaluation")
# What going back to an earlier step undoes.
WORK = (*USEFUL, "data", "other")
# What a start is told of itself, at once or when its ranks have met.
_FACTS = {"host", "ranks", "layout", "save_every_steps", "communication"}
_ORDERLY = (int(ExitCode.DONE), int(ExitCode.INTERRUPTED))


@dataclass
class Start:
    """One process of a run, from its start to its last line.

    started, ended: seconds since the epoch. first_step: None if it never began to train; last_step:
    the last update it is known to have done. ranks: None if they never met. code: its exit code,
    None without an orderly end; cause: what became of rank 0, where the code is that of ranks which
    outlived it. seconds: by category as they were counted, whatever was lost later. course: (time,
    step) of its lines, saves: of its saves that became whole, when they began. failed_saves,
    local_copies: how many; stalls: how often training has waited for any of these.
    """

    started: float
    ended: float
    host: str = "?"
    ranks: int | None = None
    layout: str = ""
    save_every_steps: int = 0
    communication: bool = False
    first_step: int | None = None
    last_step: int = 0
    code: int | None = None
    cause: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    course: list[tuple[float, int]] = field(default_factory=list)
    saves: list[tuple[float, int]] = field(default_factory=list)
    failed_saves: int = 0
    local_copies: int = 0
    stalls: int = 0

    @property
    def failed(self) -> bool:
        """Whether it ended otherwise than by its work, a request, or a mistake before any step."""
        refused = self.first_step is None and self.code == ExitCode.BAD_INPUT
        return self.code not in _ORDERLY and not refused

    def idle_before(self, later: Start) -> float:
        """Seconds in which nothing ran until the next start, though there was work to do."""
        return 0.0 if self.code == ExitCode.DONE else max(0.0, later.started - self.ended)


@dataclass(frozen=True)
class Phase:
    """A phase of the data (data.phase): from which sample of the run on, of how many datasets."""

    number: int
    first_sample: int
    datasets: int


@dataclass(frozen=True)
class Account:
    """The sums over a run. Times in seconds; None stands for what the ledger does not tell.

    seconds: of every category. phases: those that the run has gone through. failures: starts that
    failed, without one that still runs. num_bytes: of the newest checkpoint; save_delays: work done
    from saves until they were whole; write_seconds: how long each took to write.
    """

    starts: tuple[Start, ...]
    seconds: dict[str, float]
    running: bool
    num_bytes: int | None
    save_delays: tuple[float, ...]
    write_seconds: tuple[float, ...]
    unreadable: int
    phases: tuple[Phase, ...] = ()

    @property
    def wall(self) -> float:
        """From the first process' start to the last line."""
        return sum(self.seconds.values())

    @property
    def goodput(self) -> float:
        """The useful share of the wall time."""
        return sum(self.seconds[name] for name in USEFUL) / self.wall if self.wall else 0.0

    @property
    def work(self) -> float:
        """What training takes without saves and failures, of steps that were not lost."""
        return sum(self.seconds[name] for name in WORK)

    @property
    def useful_share(self) -> float:
        """Of `work`: how much is useful, and neither waiting for data nor between steps."""
        return sum(self.seconds[name] for name in USEFUL) / self.work if self.work else 0.0

    @property
    def steps(self) -> int:
        """Updates that count so far."""
        return self.starts[-1].last_step

    @property
    def step_seconds(self) -> float | None:
        """Mean work of a step that counts."""
        first = next((one.first_step for one in self.starts if one.first_step is not None), 0)
        return self.work / (self.steps - first) if self.steps > first else None

    @property
    def failures(self) -> int:
        """How many starts failed."""
        ended = self.starts[:-1] if self.running else self.starts
        return sum(one.failed for one in ended)

    @property
    def uptime(self) -> float:
        """Seconds in which a process ran."""
        return self.wall - self.seconds["idle"]

    @property
    def failure_seconds(self) -> float | None:
        """Mean time that processes run between two failures."""
        return self.uptime / self.failures if self.failures else None

    @property
    def num_saves(self) -> int:
        """Checkpoints that became whole."""
        return sum(len(one.saves) for one in self.starts)

    @property
    def num_failed_saves(self) -> int:
        """Saves that were given up."""
        return sum(one.failed_saves for one in self.starts)

    @property
    def num_local_copies(self) -> int:
        """Copies on the ranks' own machines."""
        return sum(one.local_copies for one in self.starts)

    @property
    def save_seconds(self) -> float | None:
        """Mean time that training waits for a save or a copy, failed ones included."""
        stalls = sum(one.stalls for one in self.starts)
        return self.seconds["checkpoint"] / stalls if stalls else None

    @property
    def delay_seconds(self) -> float:
        """Mean work that is done until a checkpoint is whole."""
        return sum(self.save_delays) / len(self.save_delays) if self.save_delays else 0.0

    @property
    def restart_seconds(self) -> float:
        """Mean time from a process' start to training: of restarts, of all if there was none."""
        begun = [one for one in self.starts if one.first_step is not None]
        counted = begun[1:] or begun
        return sum(one.seconds.get("restart", 0.0) for one in counted) / max(1, len(counted))

    @property
    def idle_seconds(self) -> float:
        """Mean time in which nothing ran after a failure."""
        pairs = zip(self.starts, self.starts[1:])
        gaps = [one.idle_before(later) for one, later in pairs if one.failed]
        return sum(gaps) / len(gaps) if gaps else 0.0


@dataclass
class _Piece:
    """Work between two lines, from step `first` to `last`; equal ones for work between steps."""

    first: int
    last: int
    seconds: dict[str, float]


class _Reading:
    """Goes through the lines of a ledger."""

    def __init__(self) -> None:
        self.starts: list[Start] = []
        self.totals = dict.fromkeys(ALL_CATEGORIES, 0.0)
        self.num_bytes: int | None = None
        self.delays: list[float] = []
        self.takes: list[float] = []
        self.phases: list[Phase] = []
        self._unwritten: dict[int, float] = {}  # work done since the saves of these steps
        self._begun: dict[int, float] = {}  # when they were
        self._pieces: list[_Piece] = []
        self._step = 0

    def see(self, line: dict[str, Any]) -> None:
        event, time = line["event"], float(line["time"])
        if event == "start":
            self._start(line, time)
        elif not self.starts:
            # The line of the start found no room on the disk.
            self.starts.append(Start(time - sum(line["seconds"].values()), time))
        start, step = self.starts[-1], int(line["step"])
        if event == "end":
            if start.code is not None:
                # Another rank took rank 0 for dead, which it was not.
                return
            start.code, start.cause = int(line["code"]), line.get("cause", "")
            if start.cause:
                self.lived_until(time)
        if event == "met":
            for name in _FACTS & {*line}:
                setattr(start, name, line[name])
        start.ended = max(start.ended, time)
        goes_back = event in ("begin", "rewind")
        if goes_back or start.first_step is None:
            self._count(start, line["seconds"], self._step)
        else:
            self._count(start, line["seconds"], step)
        if goes_back:
            self._go_back(step)
        if event == "data":
            self._enter(Phase(line["phase"], line["first_sample"], line["datasets"]))
        if event == "begin":
            start.first_step = step
        if event in ("save", "written", "failed", "copy"):
            self._save(start, line, time)
        start.last_step = self._step
        if start.first_step is not None:
            start.course.append((time, self._step))

    def _save(self, start: Start, line: dict[str, Any], time: float) -> None:
        """Of a save that training has waited for, has become whole, or is given up; or a copy."""
        event, step = line["event"], int(line.get("saved", line["step"]))
        # What could not even begin has no line of that, and training has waited for it, too.
        begins = event in ("save", "copy") or (event == "failed" and step not in self._begun)
        start.stalls += begins
        start.local_copies += event == "copy"
        start.failed_saves += event == "failed"
        if event == "save":
            self._unwritten[step], self._begun[step] = 0.0, time
        if event in ("written", "failed"):
            began, delay = self._begun.pop(step, time), self._unwritten.pop(step, 0.0)
            if event == "written":
                start.saves.append((began, step))
                self.num_bytes = line["bytes"]
                self.takes.append(float(line["took"]))
                self.delays.append(delay)

    def lived_until(self, time: float) -> None:
        """The last start was there until `time`, though it has not said what it did since."""
        start = self.starts[-1]
        if time > start.ended:
            name = "restart" if start.first_step is None else "lost"
            self._count(start, {name: time - start.ended}, self._step)
            start.ended = time

    def sums(self) -> dict[str, float]:
        """All categories over all starts."""
        totals = dict(self.totals)
        for piece in self._pieces:
            for name, value in piece.seconds.items():
                totals[name] += value
        pairs = zip(self.starts, self.starts[1:])
        totals["idle"] += sum(one.idle_before(later) for one, later in pairs)
        return totals

    def _start(self, line: dict[str, Any], time: float) -> None:
        before = self.starts[-1].ended if self.starts else None
        started = float(line["started"])
        if self.starts and self.starts[-1].code is None and "found" in line:
            self.lived_until(min(float(line["found"]), started))
            before = self.starts[-1].ended
        # Clocks of two machines may differ; a second process runs after the first in any case.
        started = started if before is None else min(max(started, before), time)
        facts = {name: line[name] for name in _FACTS & {*line}}
        self.starts.append(Start(started, time, last_step=self._step, **facts))
        self._unwritten.clear()
        self._begun.clear()

    def _enter(self, phase: Phase) -> None:
        """A process reads on in `phase`, or begins it: what was tried of later ones is given up."""
        while self.phases and (
            self.phases[-1].number >= phase.number
            or self.phases[-1].first_sample >= phase.first_sample
        ):
            self.phases.pop()
        self.phases.append(phase)

    def _count(self, start: Start, seconds: dict[str, float], step: int) -> None:
        work = {name: value for name, value in seconds.items() if name in WORK}
        for name, value in seconds.items():
            start.seconds[name] = start.seconds.get(name, 0.0) + value
            if name not in WORK:
                self.totals[name] += value
        for saved in self._unwritten:
            self._unwritten[saved] += sum(work.values())
        self._pieces.append(_Piece(self._step, step, work))
        self._step = step

    def _go_back(self, step: int) -> None:
        """Training is at `step` now: work beyond it is lost."""
        while self._pieces and self._pieces[-1].last > step:
            piece = self._pieces.pop()
            kept = max(0, step - piece.first) / max(1, piece.last - piece.first)
            self.totals["lost"] += (1 - kept) * sum(piece.seconds.values())
            if kept:
                shares = {name: kept * value for name, value in piece.seconds.items()}
                self._pieces.append(_Piece(piece.first, step, shares))
        self._step = step


def read_account(path: Path, *, running: bool = False, last_sign: float | None = None) -> Account:
    """Read a ledger; `running`: whether its last process still runs.

    `last_sign`: when the last process, which has ended without saying so, certainly still ran.
    Lines that crashes have left torn are counted and left out. Raises RootsError for a file that
    cannot be read, holds no line of a ledger, or is of a newer format.
    """
    reading, unreadable = _Reading(), 0
    for line in _lines(path):
        if line is None:
            unreadable += 1
            continue
        if line.get("version", VERSION) != VERSION:
            rule = f"has version {line['version']} of the ledger, and this ROOTS reads {VERSION}"
            raise RootsError(problem(str(path), None, rule, "use the ROOTS that trains the run"))
        reading.see(line)
    if not reading.starts:
        rule = "holds no line of a ledger"
        raise RootsError(problem(str(path), None, rule, "name the folder of a run"))
    if last_sign is not None and not running and reading.starts[-1].code is None:
        reading.lived_until(last_sign)
    return Account(
        starts=tuple(reading.starts),
        seconds=reading.sums(),
        running=running and reading.starts[-1].code is None,
        num_bytes=reading.num_bytes,
        save_delays=tuple(reading.delays),
        write_seconds=tuple(reading.takes),
        unreadable=unreadable,
        phases=tuple(reading.phases),
    )


def _lines(path: Path) -> Iterator[dict[str, Any] | None]:
    """Every line's object; None for one that is no line of a ledger."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            yield from map(_line_of, file)
    except OSError as error:
        rule = f"cannot be read ({error.strerror})"
        raise RootsError(problem(str(path), None, rule, "check the path and its rights")) from error


def _line_of(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
        whole = isinstance(line["seconds"], dict) and {*line["seconds"]} <= {*CATEGORIES}
        whole = whole and isinstance(line["event"], str) and isinstance(line["step"], int)
    except (ValueError, TypeError, KeyError):
        return None
    return line if whole else None
