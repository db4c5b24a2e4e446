"""Signals that end what has started no rank yet: a look at hosts, or a job that is handed in."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

# Those of the scripts in launch/: Ctrl-C, a scheduler, a terminal that closes.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class Stopped(BaseException):
    """A signal that asks to stop has come; the text is its name.

    No Exception, as KeyboardInterrupt is none: nobody on the way takes it for something to survive.
    """


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raise Stopped out of the block when a signal asks to stop; further ones change nothing.

    A signal that is ignored, as behind nohup, stays so. Only for the main thread.
    """
    before = {
        number: handler
        for number in STOP_SIGNALS
        if (handler := signal.getsignal(number)) not in (None, signal.SIG_IGN)
    }

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(signal.Signals(number).name)

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held_signals() -> Iterator[None]:
    """Let signals that would raise in the block wait for its end, so that what it starts is known.

    Blocked by the system, they would stay so for what is started.
    """
    came: list[int] = []
    before = {
        number: handler for number in STOP_SIGNALS if callable(handler := signal.getsignal(number))
    }
    for number in before:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for each in came:
        signal.raise_signal(each)
