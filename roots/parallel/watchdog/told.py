"""A rank that is told to stop before all have met, as by a launcher that has lost another one.

Its main thread stands in a call of torch, in which Python runs no handler of a signal: so another
thread hears of the signal, and ends the process if the others do not come after all.
"""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable

_STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGUSR1})
_OVER = b"\0"


class EndIfTold:
    """From `start` to `stop`, calls `end` in a thread of its own `seconds` after such a signal.

    Only signals that have handlers are heard of, and only where the main thread starts it.
    `told`: whether there was such a signal before.
    """

    def __init__(self, seconds: float, end: Callable[[], None], told: Callable[[], bool]) -> None:
        self._seconds, self._end, self._told = seconds, end, told
        self._ear, self._mouth = socket.socketpair()
        self._before: int | None = None
        self._thread = threading.Thread(target=self._run, name="told to stop", daemon=True)

    def start(self) -> None:
        """Hear from now on."""
        if threading.current_thread() is threading.main_thread():
            self._mouth.setblocking(False)
            self._before = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
            self._thread.start()

    def stop(self) -> None:
        """Hear no more; a second time it does nothing."""
        if self._before is not None:
            signal.set_wakeup_fd(self._before)
            self._before = None
            self._mouth.send(_OVER)

    def _run(self) -> None:
        deadline = time.monotonic() + self._seconds if self._told() else None
        while deadline is None or time.monotonic() < deadline:
            left = None if deadline is None else max(0.01, deadline - time.monotonic())
            self._ear.settimeout(left)
            try:
                heard = self._ear.recv(64)
            except TimeoutError:
                continue
            if _OVER in heard:
                return
            if deadline is None and not _STOP_SIGNALS.isdisjoint(heard):
                deadline = time.monotonic() + self._seconds
        self._end()
