"""Listening, and an end that leaves nobody without an answer."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from roots.errors import RootsError, problem
from roots.log import get_logger
from roots.serving.app import Front

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# How often it is looked whether the last text is done.
_LOOK_SECONDS = 0.05
_LOG = get_logger(__name__)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; 0: on a free port. Raises RootsError if it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        # Python adds the address to the words of some; a name that is unknown has none of its own.
        known = error.errno is not None and error.errno > 0
        reason = os.strerror(error.errno) if known else error.strerror
        rule = f"cannot be listened on ({reason})"
        fix = "choose another --port, or end the program that has it; check --host"
        raise RootsError(problem(f"{host}:{port}", None, rule, fix)) from None


class Server(uvicorn.Server):
    """Ends by `stop`, first politely: texts under way are written to their end."""

    def __init__(self, front: Front) -> None:
        settings = uvicorn.Config(
            front.app(),
            log_config=None,
            access_log=False,
            lifespan="on",
            server_header=False,
            timeout_graceful_shutdown=5,
        )
        super().__init__(settings)
        self._front = front
        self._stopping: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: uvicorn would end the process by the one it got."""
        yield

    def run_until_stopped(self, listening: socket.socket, told: Callable[[], None]) -> None:
        """Serve until SIGTERM or SIGINT; a second one ends it at once."""
        asyncio.run(self._run(listening, told))

    async def _run(self, listening: socket.socket, told: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self.stop)
        told()
        await self.serve(sockets=[listening])

    def stop(self) -> None:
        """Refuse what comes, and end once all that is under way is answered; again: at once."""
        if self._stopping is not None:
            self._front.desk.give_up()
            self.should_exit = True
            return
        self._front.stopping = True
        self._stopping = asyncio.get_running_loop().create_task(self._wait())

    async def _wait(self) -> None:
        front = self._front
        _LOG.info("stopping: %d texts are under way", front.engine.open)
        loop = asyncio.get_running_loop()
        end = loop.time() + front.settings.stop_seconds
        while (front.desk.live or front.engine.open) and loop.time() < end:
            await asyncio.sleep(_LOOK_SECONDS)
        front.desk.give_up()
        self.should_exit = True
