"""Libraries that are built at their first use: one process builds, the others wait, with a bound.

    FOLDER/<backend>-<key>/_C_<backend>.so    whole, renamed into place; key: see stamp.py
    FOLDER/objects/<backend>-<checkout>/      object files: a changed checkout rebuilds little
    FOLDER/<backend>-<checkout>.lock          held while anything runs in that folder of objects

The lock is the kernel's and is inherited by ninja and the compilers. So it goes with the last of
them: a process that is killed while its compilers still run does not let a second build in, and
nothing that it leaves behind has to be cleaned up before the next build.

A library is a program: only one is taken that trusted users alone can have written (trust.py), and
whose stamp is the one asked for. Where another user's lies in its place, <key>-<uid> and
<checkout>-<uid> are used instead.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from roots.errors import RootsError, problem
from roots.lock import Place, file_lock
from roots.log import get_logger
from roots.ops.library.build import Plan, build
from roots.ops.library.stamp import Stamp, read_stamp, stamp_path
from roots.ops.library.targets import Target
from roots.ops.library.toolchain import BuildError
from roots.ops.library.trust import distrust

# One rank of a node builds; the others wait at most this long. The CUDA library takes minutes, and
# ranks that wait in a collective give up later (roots.parallel.process).
TIMEOUT_SECONDS = 1500.0
_KEPT = 8
_UNUSED_SECONDS = 7 * 24 * 3600.0
_FIX = "set TORCH_EXTENSIONS_DIR to a folder of this machine that can be written"
_OWN_FIX = "set TORCH_EXTENSIONS_DIR to a folder of your own"
_logger = get_logger("ops")


@dataclass(frozen=True)
class Cache:
    """The folder of the libraries built at first use, and how long to wait for another builder."""

    folder: Path
    timeout_seconds: float = TIMEOUT_SECONDS

    def library(self, stamp: Stamp) -> Path:
        """Where the library of this stamp lies once it is built.

        Raises RootsError where others could exchange it.
        """
        if self.folder.exists() and (reason := distrust([self.folder])):
            rule = f"is not used, since what is loaded from there runs as this user: {reason}"
            raise RootsError(problem("kernel cache", str(self.folder), rule, _OWN_FIX))
        name = f"_C_{stamp.backend}.so"
        folder = _own(
            self.folder / f"{stamp.backend}-{stamp.key()}", [name, stamp_path(Path(name))]
        )
        return folder / name

    def objects(self, plan: Plan) -> Path:
        """The folder of objects of a checkout; its lock lies beside the libraries."""
        checkout = hashlib.sha256(str(plan.csrc.resolve()).encode()).hexdigest()[:8]
        return _own(self.folder / "objects" / f"{plan.target.backend}-{checkout}")

    def find_or_build(self, plan: Plan) -> Path:
        """Return the planned library, built by this process or by another one.

        Raises BuildError if it does not compile, here or in the process that was waited for;
        RootsError if the folder cannot be written or the wait was too long.
        """
        self._prepare()
        stamp = plan.stamp()
        library = self.library(stamp)
        if is_complete(library, stamp):
            # Only its owner can note the use of it.
            with contextlib.suppress(PermissionError):
                os.utime(library.parent)
            return library
        failure = _Failure(library.parent.with_name(f"{library.parent.name}.failed"), time.time())
        lock = self.folder / f"{self.objects(plan).name}.lock"
        place = Place("kernel cache", "the kernels are built there", _FIX)
        with file_lock(
            lock,
            self.timeout_seconds,
            place,
            done=lambda: is_complete(library, stamp) or failure.happened(),
        ) as held:
            if is_complete(library, stamp):
                return library
            if held is None:
                raise BuildError(failure.text())
            try:
                self._build(plan, stamp, library, held)
            except BuildError as error:
                failure.record(str(error))
                raise
            failure.forget()
        self._forget_old(plan.target)
        return library

    def _prepare(self) -> None:
        """Make the folder, and let nobody else write into it, whatever the umask says."""
        # Where that cannot be, a library may be there all the same; else taking the lock says why.
        with contextlib.suppress(OSError):
            self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            if self.folder.stat().st_uid == os.getuid() and distrust([self.folder]):
                _logger.info("others may no longer write into %s", self.folder)
                _close_to_others(self.folder)

    def _build(self, plan: Plan, stamp: Stamp, library: Path, lock: int) -> None:
        backend = plan.target.backend
        _logger.info("compiling the %s kernels into %s", backend, library.parent)
        start = time.monotonic()
        objects = self.objects(plan)
        # Within the folder of objects, so that whoever holds the lock removes what was left behind.
        temporary = objects / "out"
        objects.mkdir(mode=0o755, parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        build(plan, objects, temporary, keep_open=(lock,))
        for path in (temporary, *temporary.iterdir()):
            _close_to_others(path)
        if library.parent.exists() and not is_complete(library, stamp):
            shutil.rmtree(library.parent)
        try:
            os.rename(temporary, library.parent)
        except OSError:
            # Another checkout with the same sources was faster.
            if not is_complete(library, stamp):
                raise
        seconds = time.monotonic() - start
        _logger.info("compiled the %s kernels in %.0f seconds", backend, seconds)

    def _forget_old(self, target: Target) -> None:
        """Remove libraries that nobody has used for a while, but for the newest ones."""
        folders = [p for p in self.folder.glob(f"{target.backend}-*") if p.is_dir()]
        folders.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        for folder in folders[_KEPT:]:
            if time.time() - folder.stat().st_mtime > _UNUSED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class _Failure:
    """What the others, who wait since `since`, are told when the build fails."""

    path: Path
    since: float

    def record(self, text: str) -> None:
        self.path.write_text(text, encoding="utf-8")

    def happened(self) -> bool:
        try:
            return self.path.stat().st_mtime >= self.since
        except OSError:
            return False

    def text(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8")
        except OSError:
            return "the process that built them failed."

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)


def is_complete(library: Path, stamp: Stamp) -> bool:
    """Whether a library is there with this stamp, which is written last."""
    return library.is_file() and read_stamp(library) == stamp


def _own(folder: Path, names: Sequence[str | Path] = ()) -> Path:
    """`folder`, or one beside it for this user if it or one of its files cannot be trusted.

    Raises RootsError if the other cannot be either.
    """
    if not _distrusted(folder, names):
        return folder
    mine = folder.with_name(f"{folder.name}-{os.getuid()}")
    if reason := _distrusted(mine, names):
        rule = f"is not used, since what is loaded from there runs as this user: {reason}"
        raise RootsError(problem("kernel cache", str(mine), rule, _OWN_FIX))
    return mine


def _distrusted(folder: Path, names: Sequence[str | Path]) -> str:
    return distrust(path for path in (folder, *(folder / name for name in names)) if path.exists())


def _close_to_others(path: Path) -> None:
    """Take from others the right to write, which the umask may give them."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o022 and not mode & stat.S_ISVTX:
        path.chmod(mode & ~0o022)
