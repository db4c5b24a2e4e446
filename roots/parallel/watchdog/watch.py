"""The watchdog of one rank: a context around its training, and the end that it puts to it.

A thread tells rank 0 on every beat how far this rank has come (record.py) and hears who is at fault
(judge.py, on rank 0). Then every rank writes its stacks, one says the line, and all exit. Whoever
is in the middle of a collective cannot be woken from Python, so the thread ends the process itself,
unless the main thread already leaves with the error that a broken connection gave it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import torch.distributed as dist

from roots.device import end_process
from roots.errors import ExitCode, RootsError
from roots.lock import Owner
from roots.parallel.watchdog.blame import is_of_communication
from roots.parallel.watchdog.judge import Limits
from roots.parallel.watchdog.link import Waker, now
from roots.parallel.watchdog.record import Goodbye, Marks, Record, Verdict
from roots.parallel.watchdog.recorder import Recorder
from roots.parallel.watchdog.speaker import Speaker
from roots.parallel.watchdog.stacks import is_stopped, is_there, write_absence, write_stacks

# A main thread that a broken connection has thrown out of a collective has this long to come here,
# and then that long to close what it has open.
_UNWIND_SECONDS = 5.0
_CLOSE_SECONDS = 30.0
# How long this process may take to note its end, on a disk that may not answer.
_NOTE_SECONDS = 2.0
# What the rank that is to speak about rank 0 has over the others.
_SPEAKER_SECONDS = 0.3
# The share of a beat for which a main thread that waits computes at most.
_IDLE_SHARE = 0.01


@dataclass(frozen=True)
class Place:
    """Which rank this is, who the others are, and where stacks go.

    computes: whether the main thread's processor time shows that it works, as it does on a CPU;
    waiting for a GPU may take as much.
    """

    rank: int
    owners: tuple[Owner, ...]
    stacks: Path
    computes: bool

    @property
    def mine(self) -> Owner:
        """This process."""
        return self.owners[self.rank]


class Watch:
    """Holds what both threads of a rank know: its own state, and the verdict once there is one."""

    def __init__(
        self,
        place: Place,
        limits: Limits,
        recorder: Recorder,
        beat: float,
        speaker: Speaker,
        marks: Marks,
    ) -> None:
        self.place, self.limits, self.beat = place, limits, beat
        self._speaker = speaker
        self.marks = marks
        self.waker = Waker()
        self.finished = threading.Event()
        self.farewell: Goodbye | None = None
        self._thread: threading.Thread | None = None
        self._close: Callable[[], None] | None = None
        self._recorder = recorder
        self._main = threading.main_thread().ident or 0
        self._moved = self._worked = self._looked = now()
        self._progress = (0, 0)
        self._computed = 0.0
        self._error: BaseException | None = None
        self._settled = False  # whether the main thread leaves with the cause
        self._verdict: Verdict | None = None
        self._departed: Goodbye | None = None
        self._speaks = False
        self._news, self._leaving, self._written = (threading.Event() for _ in range(3))
        self._end = threading.Lock()  # taken by the thread that ends this process

    def set_side(self, run: Callable[[], None], close: Callable[[], None]) -> None:
        """What the watchdog's thread does, and how its connections are closed (sides.py)."""
        self._thread = threading.Thread(target=run, name="watchdog", daemon=True)
        self._close = close

    def record(self) -> Record:
        """How far this rank has come by now."""
        self._look()
        time_now, marks, recorder = now(), self.marks, self._recorder
        sent, received = recorder.messages()
        return Record(
            rank=self.place.rank,
            host=self.place.mine.host,
            step=marks.step,
            phase=marks.phase,
            begun=marks.begun,
            idle=time_now - max(self._moved, self._worked),
            still=time_now - self._moved,
            inside=recorder.inside,
            error="" if self._error is None else _first_line(self._error),
            last=recorder.last(),
            calls=recorder.calls(),
            sent=sent,
            received=received,
        )

    def hear_goodbye(self, goodbye: Goodbye) -> None:
        """Another rank leaves by itself."""
        self._departed = self._departed or goodbye
        self._news.set()

    def conclude(self, verdict: Verdict, speaks: bool) -> None:
        """End this process because of `verdict`; called by the watchdog's thread."""
        self._verdict, self._speaks = verdict, speaks
        self._news.set()
        if verdict.kind in ("died", "left"):
            self._leaving.wait(min(_UNWIND_SECONDS, self.limits.timeout))
        self._write(verdict)
        self._kill_if_stopped(verdict)
        if self._end.acquire(blocking=False):
            if speaks:
                # Past Python's buffers, whose locks another thread may hold for ever.
                with suppress(OSError):
                    os.write(2, f"roots: error: {verdict.line}\n".encode())
        else:
            threading.Event().wait(_CLOSE_SECONDS)
        # The main thread cannot tell this end to its records.
        in_time(lambda: self.marks.cut_off(verdict.code))
        end_process(verdict.code)

    def speaks_without_hub(self) -> bool:
        """Whether this rank says the line about rank 0: the first to note that it does.

        The one that is to has a start over the others, which speak if it is gone as well. Where
        that cannot be noted, it alone speaks.
        """
        first = self._is_to_speak()
        try:
            if not first:
                threading.Event().wait(_SPEAKER_SECONDS)
            return self._speaker.take_the_word()
        except OSError:
            return first

    def _is_to_speak(self) -> bool:
        """Whether this is the first rank that is not on the host of rank 0.

        If all are there, the first that is not stopped.
        """
        owners = self.place.owners
        others = [rank for rank, owner in enumerate(owners) if not owner.is_near(owners[0])]
        for rank in others or range(1, len(owners)):
            near = self.place.mine.is_near(owners[rank])
            if rank == self.place.rank or not (near and is_stopped(owners[rank])):
                return rank == self.place.rank
        return False

    def __enter__(self) -> Marks:
        assert self._thread is not None, "whoever makes a watch gives it its side"
        # Signals are for the main thread: threads inherit what is blocked where they are started.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        self._thread.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self.marks

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave together after a good end. Raises RootsError for what `error` was the result of."""
        self.explain(kind, error, traceback)
        if error is None:
            self._leave_together()
            return
        if self._settled:
            return
        self._take_the_end()
        code = error.exit_code if isinstance(error, RootsError) else ExitCode.BUG
        self._stop(Goodbye(self.place.rank, int(code), _first_line(error)))

    def explain(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Raise RootsError with the cause of an error of communication, once there is one.

        To be pushed onto an ExitStack where others should hear of the cause, too.
        """
        if self._error is None and error is not None and is_of_communication(error):
            self._explain(error)

    def _leave_together(self) -> None:
        """Nobody stops watching while another still trains, or leaves while another watches."""
        try:
            dist.barrier()
        except RuntimeError as error:
            self._explain(error)
            raise
        self._take_the_end()
        self._stop(None)
        dist.barrier()
        if self._close is not None:
            self._close()

    def _explain(self, error: BaseException) -> None:
        """Raise RootsError with the reason why communication failed, if there comes to be one."""
        self._error = error
        self._leaving.set()
        self._news.wait(self.limits.timeout + 4 * self.beat)
        if self._verdict is None and self._departed is None:
            return
        self._take_the_end()
        self._settled = True
        if self._verdict is not None:
            self._written.wait(_UNWIND_SECONDS)
            line, code, speaks = self._verdict.line, self._verdict.code, self._speaks
        elif self._departed is not None:
            # That rank says why itself.
            rank, code, speaks = self._departed.rank, self._departed.code, False
            line = f"rank {rank} has left ({self._departed.reason}); see what it says"
            self._stop(replace(self._departed, rank=self.place.rank))
        raise RootsError(line, exit_code=ExitCode(code), speaks=speaks) from error

    def _take_the_end(self) -> None:
        """From here on the main thread ends this process; if it is already ended, wait for that."""
        if not self._end.acquire(blocking=False):
            threading.Event().wait()

    def _stop(self, goodbye: Goodbye | None) -> None:
        """End the watchdog's thread, after it has said `goodbye`."""
        self.farewell = goodbye
        self.finished.set()
        self.waker.wake()
        if self._thread is not None:
            self._thread.join(_UNWIND_SECONDS)

    def _look(self) -> None:
        """Note whether this rank has come further since the last look, or has computed."""
        time_now = now()
        progress = (self._recorder.marks, self.marks.count)
        if progress != self._progress:
            self._progress, self._moved = progress, time_now
        if not self.place.computes or time_now - self._looked < self.beat / 2:
            return
        computed = _processor_seconds(self._main)
        if computed - self._computed > _IDLE_SHARE * (time_now - self._looked):
            self._worked = time_now
        self._computed, self._looked = computed, time_now

    def _write(self, verdict: Verdict) -> None:
        rank, folder = self.place.rank, self.place.stacks
        mine = self.record()
        head = f"{verdict.line}\nrank {rank} on host {mine.host}, {mine.describe()}"
        write_stacks(folder, rank, head, self._error)
        if self._speaks and verdict.kind in ("died", "stopped"):
            write_absence(folder, verdict.rank, verdict.line)
            if verdict.rank == 0:
                # Then it writes no more itself.
                self._kill_if_stopped(verdict)
                in_time(lambda: self.marks.outlived(verdict.code, f"rank 0 {verdict.kind}"))
        self._written.set()

    def _kill_if_stopped(self, verdict: Verdict) -> None:
        """A stopped process hears nothing but SIGKILL; whoever is on its machine sends that."""
        owner = self.place.owners[verdict.rank]
        near = verdict.rank != self.place.rank and self.place.mine.is_near(owner)
        if verdict.kind == "stopped" and near and is_there(owner):
            with suppress(OSError):
                os.kill(owner.pid, signal.SIGKILL)


class Unwatched:
    """Takes the place of a watch where nobody watches."""

    def __init__(self, marks: Marks) -> None:
        self._marks = marks

    def __enter__(self) -> Marks:
        return self._marks

    def __exit__(self, *error: object) -> None:
        """Nothing to leave."""

    def explain(self, *error: object) -> None:
        """Nothing is known of other ranks."""


def in_time(note: Callable[[], None]) -> None:
    """Call `note`, which writes on a disk that may not answer: then it is given up."""
    thread = threading.Thread(target=note, daemon=True)
    thread.start()
    thread.join(_NOTE_SECONDS)


def _processor_seconds(thread: int) -> float:
    """What a thread has computed for, or, where the system does not tell, the whole process."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return time.process_time()
    return time.clock_gettime(time.pthread_getcpuclockid(thread))


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0]}"
