"""Two locks between processes: one to wait for (file_lock), one that refuses a second (owned).

`file_lock` is the kernel's (flock), so it goes when its owner ends, however that happens; the
file's content, `pid` and `host` as JSON, is only for people and messages. The file itself stays.

`owned` is a record in a file, since what it guards may be written from another machine after this
one is gone, and a file server may keep the flock of a dead client for ever. Whether the owner of a
record still runs is asked of the kernel on its own machine (a pid that was given to another process
is told by the time at which that started). From any other machine it is seen by the file's time,
which the owner renews every BEAT_SECONDS: an owner that has not for BOUND_SECONDS has ended. Both
times are of the file system, so clocks need not agree. A Slurm job that was requeued knows that its
former start has ended. flock only keeps two that look at the record at once apart; where a file
system has none, the later of the two wins, and the other sees that.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

from roots.errors import RootsError, code_of, cure_of, problem
from roots.log import get_logger

# The file in a run's folder that says who owns it.
RUN_LOCK_NAME = "run.lock"
BEAT_SECONDS = 10.0
BOUND_SECONDS = 60.0
_POLL_SECONDS = 0.05
_REPORT_SECONDS = 30.0
_GUARD_SECONDS = 30.0
_SETTLE_SECONDS = 1.0
_WATCH_SECONDS = 1.0

_LOGGER = get_logger("lock")


@dataclass(frozen=True)
class Place:
    """What a lock is for, in the words of its error messages.

    name: "index cache"; contents: "the sample index is kept there"; fix: what to set; value: what
    the messages name, its folder by default; unwritable: another error where that folder is not.
    """

    name: str
    contents: str
    fix: str
    value: str | None = None
    unwritable: Callable[[OSError], RootsError] | None = None

    def error(self, lock: Path, rule: str, fix: str | None = None) -> RootsError:
        """The error of this place, one line."""
        return RootsError(problem(self.name, self.value or str(lock.parent), rule, fix or self.fix))


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
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        if place.unwritable is not None:
            raise place.unwritable(error) from None
        rule = f"cannot be written ({error.strerror}), and {place.contents}"
        raise place.error(path, rule) from None


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
            if _flock(descriptor):
                return True
        except OSError as error:
            rule = f"its file system has no locks ({error.strerror})"
            raise place.error(path, rule) from None
        now = time.monotonic()
        if now - start >= timeout_seconds:
            rule = f"held by {owner_of(path)} for over {timeout_seconds:g} seconds"
            fix = "wait for that process or end it; the lock goes with it"
            raise RootsError(problem(str(path), None, rule, fix))
        if now - report >= _REPORT_SECONDS:
            report = now
            _LOGGER.warning("waiting for %s, held by %s", path, owner_of(path))
        time.sleep(_POLL_SECONDS)
    return False


def _flock(descriptor: int) -> bool:
    """Try to lock; False if another has it. Raises OSError where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EINTR):
            return False
        raise
    return True


@dataclass(frozen=True)
class Owner:
    """The record in the file of an owned lock.

    machine: only under an equal one do pids and start times mean the same; started: clock ticks
    since that machine's start; job: of Slurm, "ID.RESTARTS", or ""; token: of this taking alone.
    """

    pid: int
    host: str
    since: str
    machine: str
    started: int
    job: str
    token: str

    @classmethod
    def this_process(cls, job: str = "") -> Owner:
        """A record of this process from now on."""
        pid = os.getpid()
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        token = secrets.token_hex(8)
        return cls(pid, socket.gethostname(), now, _machine(), start_ticks(pid) or 0, job, token)

    def describe(self) -> str:
        """Who and since when."""
        return f"pid {self.pid} on host {self.host} since {self.since}"

    def is_near(self, other: Owner) -> bool:
        """Whether this machine's kernel can be asked about `other`."""
        return (self.host, self.machine) == (other.host, other.machine)

    def follows(self, other: Owner) -> bool:
        """Whether this is a later start of the Slurm job of `other`, which has ended then."""
        job, _, restarts = self.job.partition(".")
        before, _, former = other.job.partition(".")
        return bool(job) and job == before and restarts != former


@dataclass
class Ownership:
    """What `owned` gives: the right to write, as long as `check` does not say otherwise."""

    path: Path
    place: Place
    mine: Owner
    _ended: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raise RootsError if another has taken over, to whom this process seemed to have ended."""
        other = self.renew()
        if other is not None:
            rule = f"was taken over by {other.describe()} while this process did not answer"
            fix = "leave it to that one, or end it and start again"
            raise self.place.error(self.path, rule, fix)

    def renew(self) -> Owner | None:
        """Show that this process lives; return the other owner if there is one."""
        # A file system that is away for a moment is no loss: who took over shows when it is back.
        with suppress(OSError):
            found = _read(self.path)
            if found is not None and found != self.mine:
                return found
            if found is None:
                _write(self.path, self.mine)
            os.utime(self.path)
        return None

    def keep(self) -> None:
        """Renew until the end; the body of a thread."""
        while not self._ended.wait(BEAT_SECONDS) and self.renew() is None:
            pass

    def end(self) -> None:
        """Give it up, and remove the file if it is still this owner's."""
        self._ended.set()
        with suppress(OSError, RootsError), _guard(self.path, self.place):
            if _read(self.path) == self.mine:
                self.path.unlink()


@contextmanager
def owned(path: Path, place: Place, *, job: str = "") -> Iterator[Ownership]:
    """Be the only one that writes what the lock file `path` stands for; never waits for another.

    A second one is refused with RootsError: "in use by pid P on host H since T". What an owner that
    has ended left behind is taken over; whether one on another machine has may take BOUND_SECONDS
    to see. `job`: what roots.device.slurm_job returns. Works in any process, without torch.
    """
    mine = Owner.this_process(job)
    is_new = not path.parent.exists()
    try:
        former = _take(path, mine, place)
    except OSError as error:
        rule = f"cannot be locked by {path} ({error.strerror})"
        lines = place.error(path, rule, cure_of(error)).lines
        raise RootsError(*lines, exit_code=code_of(error)) from None
    if former is not None:
        _LOGGER.warning("took over %s from %s, which has ended", path, former.describe())
    ownership = Ownership(path, place, mine)
    threading.Thread(target=ownership.keep, name="roots-owner", daemon=True).start()
    try:
        yield ownership
    finally:
        ownership.end()
        if is_new:
            # Whoever was refused after this leaves no empty folder behind.
            with suppress(OSError):
                path.parent.rmdir()


def is_owned(path: Path) -> bool:
    """Whether a process owns the lock file `path` and runs, as far as that shows from here."""
    found = _read(path)
    with suppress(OSError):
        return found is not None and not _has_ended(found, Owner.this_process(), path)
    return True


def lock_beside(target: Path) -> Path:
    """The lock file of a file or folder that `target` names, whether it is there yet or not."""
    return target.with_name(f".{target.name}.lock")


def _take(path: Path, mine: Owner, place: Place) -> Owner | None:
    """Write `mine` once no other owner is left; return the one that had ended."""
    watched: tuple[Owner, int] | None = None
    while True:
        with _guard(path, place) as guarded:
            found = _read(path)
            if found is None or _has_ended(found, mine, path):
                _write(path, mine)
                break
            seen = (found, path.stat().st_mtime_ns)
        if mine.is_near(found) or (watched is not None and watched != seen):
            raise place.error(path, f"in use by {found.describe()}")
        if watched is None:
            text = "%s is in use by %s: watching for up to %.0f seconds whether that still runs"
            _LOGGER.warning(text, path, found.describe(), BOUND_SECONDS)
        watched = seen
        time.sleep(_WATCH_SECONDS)
    if not guarded:
        time.sleep(_SETTLE_SECONDS)
        other = _read(path)
        if other is not None and other != mine:
            raise place.error(path, f"in use by {other.describe()}")
    return found


def _has_ended(owner: Owner, mine: Owner, path: Path) -> bool:
    if mine.is_near(owner):
        return start_ticks(owner.pid) != owner.started
    return mine.follows(owner) or _age(path) >= BOUND_SECONDS


def _age(path: Path) -> float:
    """Seconds since `path` was written, by the clock of its file system."""
    probe = path.with_name(f"{path.name}.{secrets.token_hex(4)}.now")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


@contextmanager
def _guard(path: Path, place: Place) -> Iterator[bool]:
    """Keep others from looking at the record; False where the file system has no such locks."""
    deadline = time.monotonic() + _GUARD_SECONDS
    while True:
        descriptor = _open(path, place)
        try:
            locked, guarded = _flock(descriptor), True
        except OSError:
            locked, guarded = True, False
        # The one before may have removed the file: its lock is worth nothing then.
        if locked and _is_at(path, descriptor):
            break
        os.close(descriptor)
        if time.monotonic() > deadline:
            rule = f"others have looked at {path} for over {_GUARD_SECONDS:g} seconds"
            raise place.error(path, rule, "wait for them")
        time.sleep(_POLL_SECONDS)
    try:
        yield guarded
    finally:
        os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _read(path: Path) -> Owner | None:
    """The owner in the file; None if nobody's record is there."""
    try:
        tree = json.loads(path.read_bytes())
        owner = Owner(**tree)
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return owner if isinstance(owner.pid, int) and isinstance(owner.job, str) else None


def _write(path: Path, owner: Owner) -> None:
    content = json.dumps(asdict(owner)).encode()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        os.pwrite(descriptor, content, 0)
        os.ftruncate(descriptor, len(content))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _machine() -> str:
    """What tells one start of a machine, and one space of its pids, from all others."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def start_ticks(pid: int) -> int | None:
    """When the process began, in clock ticks since the machine's start; None if it has ended.

    0 where there is no /proc, and only the pid tells.
    """
    try:
        # "pid (name) state ...": the name may hold anything.
        words = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        # A zombie has ended, though nobody has asked for its exit status.
        return None if words[0] in (b"Z", b"X") else int(words[19])
    except (OSError, IndexError):
        return None if Path("/proc/self/stat").exists() or not _runs(pid) else 0
