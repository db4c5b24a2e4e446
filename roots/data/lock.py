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
from pathlib import Path

from roots.errors import RootsError, problem
from roots.log import get_logger

_POLL_SECONDS = 0.05
_REPORT_SECONDS = 30.0


@contextmanager
def file_lock(
    path: Path,
    timeout_seconds: float,
    *,
    done: Callable[[], bool] = lambda: False,
) -> Iterator[bool]:
    """Hold the lock at `path`; gives True, or False as soon as `done()` says it is not needed.

    Raises RootsError naming the owner after `timeout_seconds`, and where the folder cannot be
    written or its file system has no locks.
    """
    descriptor = _open(path)
    try:
        held = _wait(path, descriptor, timeout_seconds, done)
        if held:
            owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, owner.encode(), 0)
        yield held
    finally:
        os.close(descriptor)


def owner_of(path: Path) -> str:
    """Say who holds, or held last, the lock at `path`."""
    try:
        content = json.loads(path.read_bytes())
        return f"process {content['pid']} on {content['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "an unknown process"


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        rule = f"cannot be written ({error.strerror}), and the sample index is kept there"
        raise RootsError(_elsewhere(path.parent, rule)) from None


def _wait(path: Path, descriptor: int, timeout_seconds: float, done: Callable[[], bool]) -> bool:
    start = report = time.monotonic()
    while not done():
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EINTR):
                rule = f"its file system has no locks ({error.strerror})"
                raise RootsError(_elsewhere(path.parent, rule)) from None
        now = time.monotonic()
        if now - start >= timeout_seconds:
            rule = f"held by {owner_of(path)} for over {timeout_seconds:g} seconds"
            fix = "wait for that process or end it; the lock goes with it"
            raise RootsError(problem(str(path), None, rule, fix))
        if now - report >= _REPORT_SECONDS:
            report = now
            get_logger("data").warning("waiting for %s, held by %s", path, owner_of(path))
        time.sleep(_POLL_SECONDS)
    return False


def _elsewhere(folder: Path, rule: str) -> str:
    fix = "set data.cache_directory to a folder of this machine that can be written"
    return problem("index cache", str(folder), rule, fix)
