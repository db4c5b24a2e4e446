"""Signals that ask a run to stop: finish the step, save, leave.

SIGTERM comes from schedulers and launchers, SIGINT from a keyboard, SIGUSR1 from Slurm's
`--signal=USR1@120`. A handler only remembers the request; the loop asks for it between steps, and
before the first one for what came while the run was put together.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_SECOND_INTERRUPT = b"\nroots: saves and leaves after this step; a second interrupt ends at once\n"


class StopSignals:
    """Context in which STOP_SIGNALS set a flag instead of ending the process.

    A second SIGINT does what it does without the context: KeyboardInterrupt, for someone who will
    not wait for the checkpoint; other signals may come as often as they like. The old handlers come
    back at the exit. What a process has blocked until there are handlers, as launch/rank.py does,
    is let through. Python delivers signals to the main thread only, so the context must be entered
    there (ValueError from Python otherwise).
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._old_handlers: dict[signal.Signals, Any] = {}

    def stop_requested(self) -> bool:
        """Whether this process was asked to stop. Other ranks may know it a step later."""
        return self._received is not None

    @property
    def received(self) -> str | None:
        """Name of the first signal that asked to stop, such as "SIGTERM", for the log."""
        return None if self._received is None else self._received.name

    def __enter__(self) -> StopSignals:
        for number in STOP_SIGNALS:
            self._old_handlers[number] = signal.signal(number, self._remember)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._old_handlers.items():
            # None stands for a handler installed by C code, which Python cannot put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._old_handlers.clear()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self._received is None:
            self._received = signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            # Not by a logger, which this may have interrupted.
            with suppress(OSError):
                os.write(2, _SECOND_INTERRUPT)
