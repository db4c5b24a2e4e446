"""Talks with processes on other hosts: a question is a line to it, an answer a line of JSON."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from roots.launching.stop import held_signals

# For a simple question once a process has begun to answer, and for its end after the last.
SECONDS_A_QUESTION = 5.0
# For one that is told to end at once.
_SECONDS_TO_LEAVE = 0.5


class Talk(ABC):
    """A process that `command` starts, and what it has said so far.

    `silence` is why it answers no more, "" while it does. Its stderr goes to the file `errors`.
    """

    def __init__(self, command: Sequence[str], errors: Path) -> None:
        self.command = command
        self.errors = errors
        self.process: subprocess.Popen[str] | None = None
        self.silence = ""
        self.asked = 0.0

    @abstractmethod
    def keep(self, tree: dict[str, Any], arrived: float) -> None:
        """Take an answer, which came at `arrived` (time.time())."""

    def start(self, inbox: Inbox) -> None:
        """Start the process, with a thread that reads what it says and when that came."""
        pipe = subprocess.PIPE
        try:
            with self.errors.open("wb") as errors, held_signals():
                self.process = subprocess.Popen(
                    self.command, stdin=pipe, stdout=pipe, stderr=errors, text=True
                )
        except OSError as error:
            self.silence = f"no {self.command[0]} here: {error.strerror}"
            return
        assert self.process.stdout is not None
        threading.Thread(target=self._read, args=(self.process.stdout, inbox), daemon=True).start()

    def _read(self, stream: IO[str], inbox: Inbox) -> None:
        for line in stream:
            inbox.put((self, time.time(), line))
        inbox.put((self, time.time(), ""))

    def ask(self, question: str) -> bool:
        """Send a question; whether there was still someone to ask."""
        if self.silence or self.process is None or self.process.stdin is None:
            return False
        self.asked = time.time()
        # Who has ended says so by the end of its output.
        with suppress(OSError):
            self.process.stdin.write(question + "\n")
            self.process.stdin.flush()
        return True

    def take(self, line: str, arrived: float) -> bool:
        """Keep an answer; False for a line that is none, as shells print at a login."""
        if not line:
            self.silence = self.silence or self._reason()
            return True
        try:
            tree = json.loads(line)
        except ValueError:
            return False
        if not isinstance(tree, dict):
            return False
        self.keep(tree, arrived)
        return True

    def _reason(self) -> str:
        """Why it ended before it was told to: its last words."""
        assert self.process is not None
        code = self.process.wait()
        lines = self.errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else f"ended with code {code} and said nothing"

    def close_input(self) -> None:
        """Say that there are no more questions."""
        if self.process is not None and self.process.stdin is not None:
            with suppress(OSError):
                self.process.stdin.close()

    def terminate(self) -> None:
        """Tell the process to end; what it is on another host ends with its input."""
        if self.process is not None:
            self.process.terminate()

    def end(self, seconds: float) -> None:
        """Wait for the process, `seconds` if it still answers, and kill it if it does not end."""
        if self.process is None:
            return
        try:
            self.process.wait(seconds if not self.silence else 0.1)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Inbox(queue.Queue[tuple[Talk, float, str]]):
    """Lines of all processes, as they come: whose, when, and what; "" at its end."""


def receive(inbox: Inbox, talks: Iterable[Talk], seconds: float) -> None:
    """Wait until each of `talks` has said a line, or has ended, or the time is over."""
    deadline = time.monotonic() + seconds
    waiting = {talk for talk in talks if talk.silence == ""}
    while waiting:
        try:
            talk, arrived, line = inbox.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            for talk in waiting:
                talk.silence = talk.silence or f"did not answer in {seconds:g} s"
            return
        if talk.take(line, arrived):
            waiting.discard(talk)


def end_all(talks: Sequence[Talk], at_once: bool = False) -> None:
    """End all processes, which learn of it at once.

    `at_once` where this one is to end itself: they are told to, and hardly waited for.
    """
    for talk in talks:
        talk.close_input()
    if at_once:
        for talk in talks:
            talk.terminate()
    for talk in talks:
        talk.end(_SECONDS_TO_LEAVE if at_once else SECONDS_A_QUESTION)
