"""The connections of the watchdog: every rank to rank 0, apart from all that the training uses.

A connection that breaks off tells at once that a process is gone, on any host; what is stopped
leaves its own open and is told by its silence. Lines of JSON travel (record.py), after a first line
with the token that rank 0 gave to all, so that nobody else is heard.
"""

from __future__ import annotations

import secrets
import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from roots.errors import RootsError, problem
from roots.parallel.process import LOOPBACK
from roots.parallel.watchdog.record import Message, Question, from_line, to_line

_LONGEST_LINE = 1 << 20
CONNECT_SECONDS = 60.0
FIX = "let the ranks' hosts reach each other, or set it to 0, which switches it off"


class Line:
    """One end of a connection: whole messages out of what arrives."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.broken = False
        self._rest = b""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(1.0)

    def send(self, message: Message) -> None:
        """Send it; whether the other end is gone is for `receive`, after what it still said."""
        with suppress(OSError):
            self.connection.sendall(to_line(message))

    def receive(self) -> Iterator[Message]:
        """The messages that have arrived; called when there is something, or the end."""
        for line in self.receive_lines():
            try:
                yield from_line(line)
            except (ValueError, TypeError):
                self.broken = True

    def receive_lines(self) -> list[bytes]:
        """The whole lines that have arrived."""
        try:
            found = self.connection.recv(1 << 16)
        except TimeoutError:
            return []
        except OSError:
            found = b""
        self.broken = self.broken or not found or len(self._rest) > _LONGEST_LINE
        *lines, self._rest = (self._rest + found).split(b"\n")
        return lines

    def close(self) -> None:
        """Close it; what was sent still arrives."""
        self.connection.close()


@dataclass
class Hub:
    """Rank 0's ends of the connections, by rank, and the port where the others come in."""

    listener: socket.socket
    token: str
    lines: dict[int, Line] = field(default_factory=dict)
    hosts: dict[int, str] = field(default_factory=dict)

    @staticmethod
    def open(master_addr: str) -> Hub:
        """Listen at a port that is free: on the loopback if all ranks meet there."""
        token = secrets.token_hex(16)
        if master_addr in LOOPBACK:
            return Hub(socket.create_server((LOOPBACK[0], 0), backlog=1024), token)
        # By IPv4 and IPv6, where there is the latter.
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        listener = socket.create_server(("", 0), family=family, backlog=1024, dualstack_ipv6=both)
        return Hub(listener, token)

    @property
    def port(self) -> int:
        """Where to connect."""
        return int(self.listener.getsockname()[1])

    def let_in(self) -> int | None:
        """Give whoever comes next its place, and tell it so; its rank.

        None for nobody within a second, and for who does not show the token.
        """
        self.listener.settimeout(1.0)
        try:
            line = Line(self.listener.accept()[0])
        except TimeoutError:
            return None
        shown = line.receive_lines()
        first = shown[0].decode("utf-8", "replace") if len(shown) == 1 else ""
        token, rank, host = (*first.split(" ", 2), "", "")[:3]
        if not secrets.compare_digest(token.encode(), self.token.encode()) or not rank.isdecimal():
            line.close()
            return None
        self.lines[int(rank)], self.hosts[int(rank)] = line, host
        line.send(Question())
        return int(rank)

    def close(self) -> None:
        """Close everything."""
        self.listener.close()
        for line in self.lines.values():
            line.close()


def connect(host: str, port: int, token: str, rank: int, seconds: float = CONNECT_SECONDS) -> Line:
    """This rank's connection to rank 0, which answers with a Question once it has let it in.

    Raises RootsError if there is no way within `seconds`.
    """
    target = LOOPBACK[0] if host in LOOPBACK else host
    try:
        line = Line(socket.create_connection((target, port), timeout=seconds))
        line.connection.sendall(f"{token} {rank} {socket.gethostname()}\n".encode())
        return line
    except OSError as error:
        rule = f"rank {rank} must reach rank 0 at {target}:{port} ({error.strerror or error})"
        raise RootsError(problem("watchdog.timeout_seconds", None, rule, FIX)) from error


class Waker:
    """Waits for sockets until another thread ends the wait."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._source, self._end = socket.socketpair()
        self._selector.register(self._source, selectors.EVENT_READ)

    def add(self, source: socket.socket, rank: int) -> None:
        """Wait for `source` too, and call it by its rank."""
        self._selector.register(source, selectors.EVENT_READ, rank)

    def remove(self, source: socket.socket) -> None:
        """Wait for it no longer."""
        self._selector.unregister(source)

    def wake(self) -> None:
        """End the wait, and each to come."""
        self._end.send(b"\0")

    def wait(self, seconds: float) -> list[int]:
        """The ranks from which something has come, after `seconds` at the latest."""
        found = self._selector.select(max(0.0, seconds))
        return [key.data for key, _ in found if key.fileobj is not self._source]


def now() -> float:
    """Seconds of a clock that never jumps."""
    return time.monotonic()
