"""The goodput ledger, RUN/ledger.jsonl: where the seconds of a run went, of lost ones too.

Global rank 0 appends; nothing is ever cut out of it, whatever checkpoint a run resumes from. UTF-8,
one JSON object a line. Every line has `event`, `time` (seconds since the epoch), `step` (updates
that are done) and `seconds`: how long each category below lasted since the line before it, as
measured by a clock that never jumps. The seconds of all lines of one start add up to its time from
the start of the process.

    start   a process has begun, and imports torch next: version (of this format), started (time),
            host, pid; found (time): the last sign of life of a process before, which ended
            without giving up the folder of the run
    met     the ranks have met: ranks (how many), layout, save_every_steps, communication (whether
            that category is measured)
    data    what this process reads: phase (of the data), first_sample (of the run in that phase),
            datasets (how many)
    begin   training begins, from `step`
    steps   written after a quarter of a second, or after a longer step
    save    training goes on after a save at `step`, which may still be written beside it
    written a save has become whole: saved (its step), took (seconds of writing), bytes
    failed  a save was given up, begun or not: saved (its step)
    copy    training goes on after a copy on each rank's own machine (local_copies.py)
    rewind  training has gone back to `step`, in the same process
    end     the process is about to end: code, its exit code; or another rank, which outlived it,
            tells its end: with cause, and without seconds

A process that is killed with all others leaves no `end`: its last line, or `found` of the next,
tells how long it certainly ran. One that ends on a full disk has room for what it owes in
RUN/ledger.reserve, which is there while it runs. What a crash has left of a line ends where the
next process begins one. Until `met` came, `start` was written then and had its fields; until `copy`
and `failed` came, copies were `save` and failures left no line.

Categories, as rank 0 lives through them; each second is in one of them:

    restart        from the start of the process until training begins: imports, data, loading
    data           waiting for the next batch
    compute        in steps; with collectives too where `communication` is not measured
    communication  waiting in collectives and messages, in steps and between them; on CPUs alone,
                   where these return when they are done, and without waits for handles
    evaluation     on held-out data
    checkpoint     saving, as long as training waits for it: the stall
    other          between steps: records, trackers, hooks
    lost           in a step that an error ended

What cannot be known while it happens is left to readers (training/report/account.py): which other
steps were lost, and for how long nothing ran.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from roots.data.record import DataRecord
from roots.errors import ExitCode, RootsError
from roots.files import append_whole
from roots.log import get_logger
from roots.parallel.watchdog.record import Marks

LEDGER_FILE = "ledger.jsonl"
# For some hundred lines of saves that failed, and the end.
RESERVE_BYTES = 2**16
VERSION = 1
CATEGORIES = (
    "compute",
    "communication",
    "data",
    "evaluation",
    "checkpoint",
    "restart",
    "other",
    "lost",
)
_WITH_COLLECTIVES = ("compute", "other")
_OF_A_STEP = ("data", "compute", "communication")
# How much of the time before a sudden end may be unknown, unless a step takes longer.
LINE_SECONDS = 0.25

_LOGGER = get_logger("training.ledger")


class Ledger:
    """Counts the seconds of this process; with a `path`, writes them down.

    A context: an exception that leaves it is an end with its exit code. Failing writes warn once
    and never raise; what they should have held is written as soon as that works again.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        started: float | None = None,
        marks: Marks | None = None,
        clock: Callable[[], float] = time.perf_counter,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Open nothing yet. `started`: when the process began, in seconds since the epoch.

        marks: what the watchdog of this rank hears, of every category and step.
        """
        self.marks = Marks() if marks is None else marks
        self.marks.cut_off = self.cut_off
        self._lock = threading.Lock()  # of all that a line takes
        self._path = path
        self._clock, self._wall = clock, wall
        self._waited: Callable[[], float] = lambda: 0.0
        self._waited_before = 0.0
        self._since = self._written = clock()
        self._started = wall() if started is None else min(started, wall())
        self._category = "restart"
        self._seconds = dict.fromkeys(CATEGORIES, 0.0)
        self._seconds["restart"] = wall() - self._started
        self._finished = dict(self._seconds)  # without those of a step that is not done
        self._file: FileIO | None = None
        self._end = 0
        self._owed: list[bytes] = []  # lines for which there was no room
        self._warned = self._ended = False
        self._step = 0

    def start(self, found: float | None = None) -> None:
        """Write the first line of this process, and keep room; `found` as the module says."""
        facts = {"host": socket.gethostname(), "pid": os.getpid()}
        facts |= {} if found is None else {"found": round(found, 3)}
        self._write("start", version=VERSION, started=self._started, **facts)
        if self._path is not None:
            with suppress(OSError):
                _reserve(self._path).write_bytes(bytes(RESERVE_BYTES))

    def met(self, waited: Callable[[], float] | None = None, **facts: Any) -> None:
        """The ranks have met; `facts` as the module says.

        waited: seconds in which it has waited in collectives so far; None: they are not measured.
        """
        if waited is not None:
            self._waited, self._waited_before = waited, waited()
        self._write("met", **facts, communication=waited is not None)

    def reads(self, data: DataRecord) -> None:
        """The data of this process are known."""
        facts = {"phase": data.phase, "first_sample": data.first_sample}
        self._write("data", **facts, datasets=len(data.sources))

    def begin(self, step: int) -> None:
        """Training begins after `step` updates."""
        self._switch("other")
        self._step = step
        self.marks.begin(step)
        self._write("begin")

    @contextmanager
    def span(self, category: str) -> Iterator[None]:
        """What runs inside counts as `category`, save for spans inside it."""
        before = self._category
        self._switch(category)
        try:
            yield
        finally:
            self._switch(before)

    def step_done(self, step: int) -> None:
        """Update number `step` is done; one that was done before was preceded by a rewind."""
        if step <= self._step:
            self.rewound(step - 1)
        self._step = step
        self.marks.done(step)
        self._finished.update(self._seconds)
        if self._clock() - self._written >= LINE_SECONDS:
            self._write("steps")

    def saved(self) -> None:
        """Training goes on after a save, whose stall was a span."""
        self._write("save")

    def written(self, step: int, seconds: float, num_bytes: int | None = None) -> None:
        """The save of `step` is whole; writing it took `seconds`, beside training or not."""
        self._write("written", saved=step, took=seconds, bytes=num_bytes)

    def not_saved(self, step: int) -> None:
        """The save of `step` is given up."""
        self._write("failed", saved=step)

    def copied(self) -> None:
        """Training goes on after a copy on this machine, whose stall was a span."""
        self._write("copy")

    def rewound(self, step: int) -> None:
        """Training goes back to `step`; what was done since is lost."""
        self._write("steps")
        self._step = step
        self.marks.begin(step)
        self._write("rewind")

    def end(self, code: ExitCode) -> ExitCode:
        """The process is about to end with `code`, which is given back."""
        self._write("end", code=int(code))
        return code

    def cut_off(self, code: int) -> None:
        """Another thread is about to end the process with `code`, whatever this one is in."""
        self._lose_step()
        self.end(ExitCode(code))

    def tell_end(self, path: Path, code: int, cause: str) -> None:
        """Another rank's ledger is at `path`, and that rank, which is gone, cannot tell its end."""
        line = {"event": "end", "time": round(self._wall(), 3), "step": self._step}
        line |= {"code": code, "cause": cause, "seconds": {}}
        with suppress(OSError):
            if path.stat().st_size:
                _reserve(path).unlink(missing_ok=True)
                self._owed = [json.dumps(line).encode() + b"\n"]
                self._append(path)
        self._close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.end(ExitCode.DONE)
            return
        self._lose_step()
        self.end(error.exit_code if isinstance(error, RootsError) else ExitCode.BUG)

    def _lose_step(self) -> None:
        """What a step that is not done took so far is lost."""
        self._switch(self._category)
        for name in _OF_A_STEP:
            self._seconds["lost"] += self._seconds[name] - self._finished[name]
            self._seconds[name] = self._finished[name]

    def _switch(self, category: str) -> None:
        now, waited = self._clock(), self._waited()
        seconds = now - self._since
        if self._category in _WITH_COLLECTIVES:
            waiting = min(seconds, waited - self._waited_before)
            self._seconds["communication"] += waiting
            seconds -= waiting
        self._seconds[self._category] += seconds
        self._since, self._category, self._waited_before = now, category, waited
        self.marks.enter(category)

    def _write(self, event: str, **fields: Any) -> None:
        with self._lock:
            # Two threads may come to the end.
            if self._path is not None and not self._ended:
                self._ended = event == "end"
                self._write_line(self._path, event, fields)

    def _write_line(self, path: Path, event: str, fields: dict[str, Any]) -> None:
        self._switch(self._category)
        seconds = {name: round(value, 6) for name, value in self._seconds.items() if value > 0}
        place = {"event": event, "time": round(self._wall(), 3), "step": self._step}
        line = {**place, **fields, "seconds": seconds}
        self._owed.append(json.dumps(line).encode() + b"\n")
        self._written = self._since
        if event == "end":
            with suppress(OSError):
                _reserve(path).unlink()
        try:
            self._append(path)
        except OSError as error:
            self._warn(error)
            if event == "steps":
                # Its seconds go into the next line, so that what is owed does not grow for ever.
                self._owed.pop()
                return
        self._seconds = dict.fromkeys(CATEGORIES, 0.0)
        self._finished = dict(self._seconds)
        if event == "end":
            self._close()

    def _append(self, path: Path) -> None:
        """Write all that is owed. Raises OSError; whole lines then stay owed."""
        if self._file is None:
            self._file = path.open("a+b", buffering=0)
            self._end = self._file.seek(0, os.SEEK_END)
            if self._end and os.pread(self._file.fileno(), 1, self._end - 1) != b"\n":
                self._end = append_whole(self._file, b"\n", self._end)
        while self._owed:
            self._end = append_whole(self._file, self._owed[0], self._end)
            del self._owed[0]

    def _warn(self, error: OSError) -> None:
        self._close()
        if not self._warned:
            self._warned = True
            text = "%s cannot be written (%s); the run goes on, and it is tried again"
            _LOGGER.warning(text, self._path, error.strerror or error)

    def _close(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None


def _reserve(path: Path) -> Path:
    """The file whose room is for the last lines of the ledger `path`."""
    return path.with_suffix(".reserve")
