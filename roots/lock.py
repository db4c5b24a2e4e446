"""A lock between processes that names its owner and cannot outlive it.

The lock is the kernel's (flock), so it goes when its owner ends, however that happens; the file's
content, `pid` and `host` as JSON, is only for people and messages. The file itself stays.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from roots.errors import RootsError, problem
from roots.log import get_logger

_POLL_SECONDS = 0.05
_REPORT_SECONDS = 30.0


@dataclass(frozen=True)
class Place:
    """What the folder of a lock is for, in the words of its error messages.

    name: "index cache"; contents: "the sample index is kept there"; fix: what to set.
    """

    name: str
    contents: str
    fix: str


@contextmanager
def file_lock(
    path: Path,
    timeout_seconds: float,
    place: Place,
    *,
    done: Callable[[], bool] = lambda: False,
) -> Iterator[int | None]:
    """Hold the lock at `path`; gives None as soon as `done()` says that it is not needed.

    Gives the lock's descriptor otherwise: a child process that inherits it shares the lock, which
    then lasts until the last of them has ended. Raises RootsError naming the owner after
    `timeout_seconds`, and where the folder cannot be written or its file system has no locks.
    """
    descriptor = _open(path, place)
    try:
        held = _wait(path, descriptor, timeout_seconds, place, done)
        if held:
            owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, owner.encode(), 0)
        yield descriptor if held else None
    finally:
        os.close(descriptor)


def owner_of(path: Path) -> str:
    """Say who holds, or held last, the lock at `path`."""
    try:
        content = json.loads(path.read_bytes())
        pid, host = int(content["pid"]), str(content["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return "an unknown process"
    ended = host == socket.gethostname() and not _runs(pid)
    return f"process {pid} on {host}" + (" (ended; what it started still runs)" if ended else "")


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _open(path: Path, place: Place) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        rule = f"cannot be written ({error.strerror}), and {place.contents}"
        raise RootsError(problem(place.name, str(path.parent), rule, place.fix)) from None


def _wait(
    path: Path,
    descriptor: int,
    timeout_seconds: float,
    place: Place,
    done: Callable[[], bool],
) -> bool:
    start = report = time.monotonic()
    while not done():
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EINTR):
                rule = f"its file system has no locks ({error.strerror})"
                raise RootsError(problem(place.name, str(path.parent), rule, place.fix)) from None
        now = time.monotonic()
        if now - start >= timeout_seconds:
            rule = f"held by {owner_of(path)} for over {timeout_seconds:g} seconds"
            fix = "wait for that process or end it; the lock goes with it"
            raise RootsError(problem(str(path), None, rule, fix))
        if now - report >= _REPORT_SECONDS:
            report = now
            get_logger("lock").warning("waiting for %s, held by %s", path, owner_of(path))
        time.sleep(_POLL_SECONDS)
    return False
