"""The start of a run, until its ranks are watched: who has come, who has not, who has died since.

A thread of every rank looks for rank 0 in the store in which the process group is going to form,
and opens the connection to it that the watch of the run goes on to use (link.py). Rank 0 so knows
who has come, and at once who dies. Whoever is missing after `watchdog.start_seconds` is named with
those who have come. Where rank 0 itself is missing, or dies, the others find each other by a file
of the run (speaker.py). The main thread stands in a call of torch meanwhile, which nothing wakes
from Python: so this thread ends the process.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from types import TracebackType

import torch.distributed as dist

from roots.device import LaunchEnvironment, end_process
from roots.errors import ExitCode, RootsError, problem
from roots.parallel.process import LOOPBACK, await_listener
from roots.parallel.watchdog.blame import is_of_communication
from roots.parallel.watchdog.link import CONNECT_SECONDS, FIX, Hub, Line, Waker, connect, now
from roots.parallel.watchdog.record import Goodbye, Marks, Message, Question, Verdict, spell
from roots.parallel.watchdog.speaker import Speaker
from roots.parallel.watchdog.told import EndIfTold
from roots.parallel.watchdog.watch import in_time

_KEY = "roots/watchdog"
# Between two looks for what is not there yet, and for what others note of themselves.
_LOOK_SECONDS, _NOTE_SECONDS = 0.1, 1.0
# So long others may still come after this rank was told to stop.
_TOLD_SECONDS = 2.0
# So long an error of torch may be the result of what is told a moment later.
_BLAME_SECONDS = 5.0
# Of one call of the store. To open one takes torch, which tries three times and counts its pauses
# apart, up to three times as long where its server goes meanwhile: it is tried here again anyway.
_STORE_TIMEOUT, _OPEN_TIMEOUT = timedelta(seconds=5), timedelta(seconds=1)
_MOST_HOSTS = 4
_START_AGAIN = "see whether these ranks were started and what they say, then start again"


class Meeting:
    """The context in which this rank joins the others; `hub` or `line` is what stays of it.

    heard: what other ranks have said to the watch of this one already.
    """

    def __init__(
        self,
        environment: LaunchEnvironment,
        seconds: float,
        speaker: Speaker,
        told: Callable[[], bool] = lambda: False,
        marks: Marks | None = None,
    ) -> None:
        """`seconds`: within which all must have come; `told`: whether to stop was asked before.

        marks: whose `cut_off` hears of the end of this rank, and `outlived` of that of rank 0.
        """
        self.hub: Hub | None = None
        self.line: Line | None = None
        self.heard: list[tuple[int, Message]] = []
        self._place, self._seconds, self._speaker = environment, seconds, speaker
        self._marks = Marks() if marks is None else marks
        self._deadline = now() + seconds
        self._waker = Waker()
        self._there, self._stopped, self._ended = (threading.Event() for _ in range(3))
        self._met = self._noted = False
        self._look = now() + _NOTE_SECONDS
        self._failure: Exception | None = None
        self._told = EndIfTold(_TOLD_SECONDS, self._leave, told)
        self._thread = threading.Thread(target=self._run, name="meeting", daemon=True)

    def __enter__(self) -> Meeting:
        self._told.start()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the connections to the watch; one that is broken may be the cause of `error`."""
        self._told.stop()
        if is_of_communication(error):
            self._ended.wait(_BLAME_SECONDS)
        if self._ended.is_set():
            # The other thread is about to end this process.
            threading.Event().wait()
        if isinstance(error, RootsError) and self._place.rank == 0 and not self._met:
            # It says itself why: others, who look for it in vain, need not.
            with suppress(OSError):
                self._speaker.take_the_word()
        self._stopped.set()
        self._waker.wake()
        # After an error it may still stand in a call of torch.
        self._thread.join(None if error is None else 0.0)

    def complete(self) -> None:
        """Return when all ranks have reached rank 0, now that the process group has formed.

        Raises RootsError where one has not, or cannot.
        """
        self._met = True
        self._told.stop()
        self._there.wait(CONNECT_SECONDS)
        if self._failure is not None:
            raise self._failure
        if not self._there.is_set():
            here = 0 if self.hub is None else len(self.hub.lines)
            rule = f"{here} of {self._place.world_size - 1} ranks have reached rank 0"
            raise RootsError(problem("watchdog.timeout_seconds", None, rule, FIX))

    def _run(self) -> None:
        try:
            store = self._store()
            if store is None:
                return
            if self._place.rank == 0:
                self._receive(store)
                return
            host = self._reach(store)
            if self.line is not None:
                self._there.set()
                self._hear(self.line, host)
        except Exception as error:  # noqa: BLE001  # raised by complete, in the thread of the run
            self._failure = error
            self._there.set()

    def _store(self) -> dist.TCPStore | None:
        """The store that rank 0, or torchrun, opens; None if this rank leaves before."""
        place = self._place
        target = LOOPBACK[0] if place.master_addr in LOOPBACK else place.master_addr
        while not self._stopped.is_set():
            # It may go before it has answered.
            with suppress(RuntimeError):
                if await_listener(target, place.master_port, _LOOK_SECONDS):
                    store = dist.TCPStore(
                        target,
                        place.master_port,
                        is_master=False,
                        wait_for_workers=False,
                        timeout=_OPEN_TIMEOUT,
                    )
                    store.set_timeout(_STORE_TIMEOUT)
                    return store
            if place.rank != 0:
                self._miss_rank_0("")
        return None

    def _miss_rank_0(self, host: str) -> None:
        """End if rank 0 has not come in time, or another rank has said that it is gone."""
        if now() > self._look:
            self._look = now() + _NOTE_SECONDS
            with suppress(OSError):
                if self._speaker.is_taken():
                    self._end_process("", ExitCode.LOST, speaks=False)
        left = self._deadline - now()
        if left < self._seconds / 2 and not self._noted:
            self._noted = True
            with suppress(OSError):
                self._speaker.note()
        if left < 0:
            address = f"{self._place.master_addr}:{self._place.master_port}"
            self._end_without_rank_0(host, f"has not come to {address} {self._within}")

    @property
    def _within(self) -> str:
        return f"within {self._seconds:g} s (watchdog.start_seconds)"

    def _receive(self, store: dist.TCPStore) -> None:
        """Rank 0: let the others in, and end the run if one has died, or does not come."""
        self.hub = hub = Hub.open(self._place.master_addr)
        hub.hosts[0] = socket.gethostname()
        store.set(_KEY, f"{hub.port} {hub.token} {hub.hosts[0]}")
        self._waker.add(hub.listener, 0)
        size = self._place.world_size
        while not self._stopped.is_set():
            for rank in self._waker.wait(1.0 if self._there.is_set() else _LOOK_SECONDS):
                come = hub.let_in() if rank == 0 else None
                if come is not None:
                    self._waker.add(hub.lines[come].connection, come)
                elif rank != 0 and not self._holds(rank, hub.lines[rank]):
                    who = f"rank {rank} on host {hub.hosts.pop(rank)}"
                    self._end(f"{who}: has died before all ranks had met", [rank], hub)
            missing = [rank for rank in range(size) if rank not in hub.hosts]
            if not missing:
                self._there.set()
            elif now() > self._deadline and not self._met:
                who = f"{_ranks(missing)} of {size}"
                verb = "has" if len(missing) == 1 else "have"
                self._end(f"{who}: {verb} not come to rank 0 {self._within}", missing, hub)

    def _holds(self, rank: int, line: Line) -> bool:
        """Hear what `rank` says; whether its connection holds, or it has said why not."""
        self.heard += [(rank, message) for message in line.receive()]
        if line.broken:
            self._waker.remove(line.connection)
        goodbyes = (each for other, each in self.heard if other == rank)
        return not line.broken or any(isinstance(each, Goodbye) for each in goodbyes)

    def _reach(self, store: dist.TCPStore) -> str:
        """The host of rank 0, once it has let this rank in."""
        host, failure = "", None
        for _ in self._looks():
            try:
                told = store.get(_KEY).decode() if store.check([_KEY]) else ""
            except (RuntimeError, OSError):
                self._end_without_rank_0(host, "has died before all ranks had met")
                raise
            if not self._met:
                self._miss_rank_0(host)
            if not told:
                continue
            port, token, host = told.split(" ", 2)
            try:
                place = self._place
                line = connect(place.master_addr, int(port), token, place.rank)
            except RootsError as error:
                # Rank 0 of a start before this one, in a store of torchrun's; or no way.
                failure = error
            else:
                if self._is_let_in(line):
                    self.line = line
                    return host
            if failure is not None and self._met and now() > self._deadline:
                raise failure
        return host

    def _looks(self) -> Iterator[None]:
        """Once every moment until this rank leaves the meeting."""
        while not self._stopped.is_set():
            yield
            self._stopped.wait(_LOOK_SECONDS)

    def _is_let_in(self, line: Line) -> bool:
        self._waker.add(line.connection, 0)
        while not self._stopped.is_set():
            if 0 in self._waker.wait(1.0):
                messages = list(line.receive())
                if Question() in messages:
                    messages.remove(Question())
                    self.heard += [(0, message) for message in messages]
                    return True
                if line.broken:
                    break
        self._waker.remove(line.connection)
        line.close()
        return False

    def _hear(self, line: Line, host: str) -> None:
        """Any rank but 0: end if rank 0 says so, or has died."""
        while not self._stopped.is_set():
            if 0 not in self._waker.wait(1.0):
                continue
            holds = self._holds(0, line)
            for _, message in self.heard:
                if isinstance(message, Verdict):
                    self._end_process(message.line, message.code, speaks=False)
            if not holds:
                self._end_without_rank_0(host, "has died before all ranks had met")
            if line.broken:
                return

    def _end(self, start: str, missing: Sequence[int], hub: Hub) -> None:
        """End the run on rank 0 and all that have come, with one line."""
        if self._ended.is_set():
            # Whoever was told to stop with this rank has left before it.
            threading.Event().wait()
        come = {rank: host for rank, host in hub.hosts.items() if rank not in missing}
        others = [each for each in range(self._place.world_size) if each not in hub.hosts]
        others = [each for each in others if each not in missing]
        rule = f"{_where(come)} {'has' if len(come) == 1 else 'have'}"
        if "died" in start:
            rule += " come" + (f", {_ranks(others)} not" if others else "")
        verdict = Verdict(missing[0], "died", f"{start}; {rule}; {_START_AGAIN}", ExitCode.LOST)
        for line in hub.lines.values():
            line.send(verdict)
        with suppress(OSError):
            # Ranks that come later find nobody, and need not say so.
            self._speaker.take_the_word()
        self._end_process(verdict.line, verdict.code, speaks=True)

    def _end_without_rank_0(self, host: str, rule: str) -> None:
        """End this rank, and say so for all that rank 0 has left."""
        self._ended.set()
        try:
            self._speaker.note()
            threading.Event().wait(_NOTE_SECONDS)
            come, speaks = self._speaker.here(), self._speaker.take_the_word()
        except OSError:
            come, speaks = {self._place.rank: socket.gethostname()}, self._place.rank == 1
        unknown = [each for each in range(1, self._place.world_size) if each not in come]
        who = f"rank 0 on host {host}" if host else "rank 0"
        waits = f"{_where(come)} {'waits' if len(come) == 1 else 'wait'} for it"
        if unknown:
            waits += f", of {_ranks(unknown)} nothing is known"
        line = problem(who, None, f"{rule}; {waits}", _START_AGAIN)
        if speaks and host:
            # It was there, and has begun what it can no longer end.
            in_time(lambda: self._marks.outlived(ExitCode.LOST, "rank 0 died"))
        self._end_process(line, ExitCode.LOST, speaks)

    def _leave(self) -> None:
        """End this rank, which was told to stop, and silently all that would wait for it."""
        self._ended.set()
        in_time(lambda: self._marks.cut_off(ExitCode.INTERRUPTED))
        for line in [] if self.hub is None else list(self.hub.lines.values()):
            line.send(Verdict(self._place.rank, "died", "", ExitCode.INTERRUPTED))
        try:
            speaks = self._speaker.take_the_word()
        except OSError:
            speaks = self._place.rank == 0
        if speaks:
            with suppress(OSError):
                os.write(2, b"roots: stopped before all ranks had met, nothing to save\n")
        end_process(ExitCode.INTERRUPTED)

    def _end_process(self, line: str, code: int, speaks: bool) -> None:
        self._ended.set()
        if speaks:
            with suppress(OSError):
                os.write(2, f"roots: error: {line}\n".encode())
        # The main thread, which stands in a call of torch, cannot tell this end.
        in_time(lambda: self._marks.cut_off(code))
        end_process(code)


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {spell(ranks)}"


def _where(come: Mapping[int, str]) -> str:
    """`ranks 0,2 on host a and rank 1 on host b`, or on how many hosts."""
    hosts: dict[str, list[int]] = {}
    for rank, host in sorted(come.items()):
        hosts.setdefault(host, []).append(rank)
    if len(hosts) > _MOST_HOSTS:
        return f"{_ranks(sorted(come))} on {len(hosts)} hosts"
    return " and ".join(f"{_ranks(ranks)} on host {host}" for host, ranks in hosts.items())
