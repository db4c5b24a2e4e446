"""Libraries that are built at their first use: one process builds, the others wait, with a bound.

    FOLDER/<backend>-<key>/_C_<backend>.so    whole, renamed into place; key: see stamp.py
    FOLDER/objects/<backend>-<checkout>/      object files: a changed checkout rebuilds little
    FOLDER/<backend>-<checkout>.lock          held while anything runs in that folder of objects

The lock is the kernel's and is inherited by ninja and the compilers. So it goes with the last of
them: a process that is killed while its compilers still run does not let a second build in, and
nothing that it leaves behind has to be cleaned up before the next build.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from roots.lock import Place, file_lock
from roots.log import get_logger
from roots.ops.library.build import build
from roots.ops.library.stamp import Stamp, make_stamp, stamp_path
from roots.ops.library.targets import Target
from roots.ops.library.toolchain import BuildError, Toolchain

# One rank of a node builds; the others wait at most this long. The CUDA library takes minutes, and
# ranks that wait in a collective give up later (roots.parallel.process).
TIMEOUT_SECONDS = 1500.0
_KEPT = 8
_FIX = "set TORCH_EXTENSIONS_DIR to a folder of this machine that can be written"
_logger = get_logger("ops")


@dataclass(frozen=True)
class Cache:
    """The folder of the libraries built at first use, and how long to wait for another builder."""

    folder: Path
    timeout_seconds: float = TIMEOUT_SECONDS

    def library(self, stamp: Stamp) -> Path:
        """Where the library of this stamp lies once it is built."""
        return self.folder / f"{stamp.backend}-{stamp.key()}" / f"_C_{stamp.backend}.so"

    def objects(self, target: Target, csrc: Path) -> Path:
        """The folder of objects of a checkout; its lock lies beside the libraries."""
        checkout = hashlib.sha256(str(csrc.resolve()).encode()).hexdigest()[:8]
        return self.folder / "objects" / f"{target.backend}-{checkout}"

    def find_or_build(self, target: Target, tools: Toolchain, csrc: Path) -> Path:
        """Return the library of `target`, built by this process or by another one.

        Raises BuildError if it does not compile, here or in the process that was waited for;
        RootsError if the folder cannot be written or the wait was too long.
        """
        library = self.library(make_stamp(target, tools, csrc))
        if _is_complete(library):
            os.utime(library.parent)
            return library
        objects = self.objects(target, csrc)
        failure = _Failure(library.parent.with_name(f"{library.parent.name}.failed"), time.time())
        lock = self.folder / f"{objects.name}.lock"
        place = Place("kernel cache", "the kernels are built there", _FIX)
        with file_lock(
            lock,
            self.timeout_seconds,
            place,
            done=lambda: _is_complete(library) or failure.happened(),
        ) as held:
            if _is_complete(library):
                return library
            if held is None:
                raise BuildError(failure.text())
            self._build(target, tools, csrc, library, failure, held)
        return library

    def _build(
        self,
        target: Target,
        tools: Toolchain,
        csrc: Path,
        library: Path,
        failure: _Failure,
        lock: int,
    ) -> None:
        _logger.info("compiling the %s kernels into %s", target.backend, library.parent)
        start = time.monotonic()
        temporary = self.folder / f".partial-{target.backend}-{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            objects = self.objects(target, csrc)
            build(target, tools, csrc, objects, temporary, keep_open=(lock,))
        except BuildError as error:
            failure.record(str(error))
            raise
        shutil.rmtree(library.parent, ignore_errors=True)
        os.rename(temporary, library.parent)
        failure.forget()
        seconds = time.monotonic() - start
        _logger.info("compiled the %s kernels in %.0f seconds", target.backend, seconds)
        self._forget_old(target)

    def _forget_old(self, target: Target) -> None:
        """Keep the libraries that were used last, and remove what killed builds left."""
        folders = [p for p in self.folder.glob(f"{target.backend}-*") if p.is_dir()]
        folders.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        stale = self.folder.glob(f".partial-{target.backend}-*")
        for folder in [*folders[_KEPT:], *stale]:
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


def _is_complete(library: Path) -> bool:
    return library.is_file() and stamp_path(library).is_file()
