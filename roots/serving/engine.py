"""The thread that owns the model: takes texts to write from other threads, and tells what it wrote.

All calls of the batch and of the model are made there, one after the other. What it has to tell
goes to the event loop that `start` was called in, once a step.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import TypeVar

from roots.generation.options import GenerationOptions
from roots.generation.text_batch import TextBatch, TextEvent
from roots.log import get_logger

Result = TypeVar("Result")
_LOG = get_logger(__name__)


@dataclass(frozen=True)
class Order:
    """A prompt of token ids, and how it is continued."""

    prompt: tuple[int, ...]
    options: GenerationOptions


# Called in the event loop with the number of an order, and what happened to it.
Hear = Callable[[int, "TextEvent | Exception"], None]


@dataclass(eq=False)
class Submission:
    """The orders of one request; `open` are the tickets of those that are not done."""

    orders: Sequence[Order]
    hear: Hear
    open: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Load:
    """How much there is to do: texts that wait and run, and blocks of the cache.

    blocks: that the rows have; reserved: that they have or may come to need; bound: of these
    """

    waiting: int
    running: int
    blocks: int
    reserved: int
    bound: int | None


class Engine:
    """Writes the texts of all requests side by side."""

    def __init__(self, batch: TextBatch, *, max_waiting: int) -> None:
        """max_waiting: texts that may wait, besides those that the batch has rows for"""
        self._batch = batch
        self.most = batch.batch.max_rows + max_waiting
        self._commands: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._open = 0
        self._of: dict[int, Submission] = {}
        self._thread = threading.Thread(target=self._run, name="roots-engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.load = self._measure()

    def start(self) -> None:
        """Begin to work; called in the event loop that hears of it."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """Give up what is not done, and end the thread after the step under way."""
        self._commands.put(None)
        self._thread.join()

    @property
    def open(self) -> int:
        """Texts that are not done."""
        return self._open

    def submit(self, orders: Sequence[Order], hear: Hear) -> Submission | None:
        """Have texts written; None, and nothing is done, where too many wait already."""
        with self._lock:
            if self._open + len(orders) > self.most:
                return None
            self._open += len(orders)
        submission = Submission(orders, hear)
        self._commands.put(partial(self._begin, submission))
        return submission

    def cancel(self, submission: Submission) -> None:
        """Forget the texts that are not done; of them nothing more is told."""
        self._commands.put(partial(self._drop, submission))

    def call(self, function: Callable[[], Result]) -> Future[Result]:
        """Call a function between two steps, when nothing else uses the model."""
        future: Future[Result] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except Exception as error:  # noqa: BLE001 - whoever waits for it hears of it
                future.set_exception(error)

        self._commands.put(run)
        return future

    def _run(self) -> None:
        while self._take_commands():
            try:
                events = self._batch.step()
            except Exception as error:  # noqa: BLE001 - the server goes on
                # A failed step says nothing about the next request.
                _LOG.exception("a step failed; the texts under way are given up")
                self._fail(error)
            else:
                self._tell(events)
            self.load = self._measure()

    def _take_commands(self) -> bool:
        """Do what other threads ask for, and wait for it where there is nothing else to do.

        False: the thread is to end.
        """
        wait = self._batch.batch.idle
        while True:
            try:
                command = self._commands.get(block=wait)
            except Empty:
                return True
            if command is None:
                return False
            command()
            self.load = self._measure()
            wait = self._batch.batch.idle

    def _begin(self, submission: Submission) -> None:
        for number, order in enumerate(submission.orders):
            try:
                ticket = self._batch.add(order.prompt, order.options)
            except Exception as error:  # noqa: BLE001 - whoever waits for it hears of it
                self._release(1)
                self._post([partial(submission.hear, number, error)])
                continue
            submission.open[ticket] = number
            self._of[ticket] = submission

    def _drop(self, submission: Submission) -> None:
        for ticket in submission.open:
            self._batch.cancel(ticket)
            del self._of[ticket]
        self._release(len(submission.open))
        submission.open.clear()

    def _tell(self, events: Sequence[TextEvent]) -> None:
        calls = []
        for event in events:
            submission = self._of[event.ticket]
            number = submission.open[event.ticket]
            calls.append(partial(submission.hear, number, event))
            if event.stopped_by is not None:
                del submission.open[event.ticket], self._of[event.ticket]
                self._release(1)
        self._post(calls)

    def _fail(self, error: Exception) -> None:
        calls = [
            partial(submission.hear, submission.open[ticket], error)
            for ticket, submission in self._of.items()
        ]
        for submission in set(self._of.values()):
            self._drop(submission)
        self._post(calls)

    def _post(self, calls: Sequence[Callable[[], None]]) -> None:
        """Make calls in the event loop."""
        assert self._loop is not None, "started before anything is submitted"
        if calls:
            self._loop.call_soon_threadsafe(_make, calls)

    def _release(self, count: int) -> None:
        with self._lock:
            self._open -= count

    def _measure(self) -> Load:
        batch = self._batch.batch
        return Load(
            batch.waiting,
            batch.running,
            batch.rows.blocks,
            batch.reserved_blocks,
            batch.max_blocks,
        )


def _make(calls: Sequence[Callable[[], None]]) -> None:
    for call in calls:
        call()
