"""Compiled units of kernel libraries, kept by what they are made from.

    FOLDER/<key>.o      key: a hash over the flags, the tools, the source, and all that it includes

A unit whose object is kept is linked as it is, whichever test, process or earlier run compiled it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

from roots.ops.library.build import Plan, build
from roots.ops.library.targets import Unit

_INCLUDE = re.compile(rb'^#include "([^"]+)"', re.MULTILINE)
_UNUSED_SECONDS = 14 * 24 * 3600.0


class KeptObjects:
    """The objects of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, unit: Unit, plan: Plan) -> Path:
        """Where the object of a unit lies, if it is kept."""
        tools = plan.tools
        cuda = "" if tools.cuda is None else tools.cuda.version
        words = [*tools.compiler, tools.compiler_version, tools.torch.version, cuda, *unit.flags]
        digest = hashlib.sha256("\0".join(words).encode())
        csrc = plan.csrc.resolve()
        for path in sorted(included_files(csrc / unit.source)):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(csrc)}\0{len(content)}\0".encode())
            digest.update(content)
        return self._folder / f"{digest.hexdigest()[:32]}.o"

    def missing(self, plan: Plan) -> list[Unit]:
        """The units of a plan that have to be compiled."""
        return [unit for unit in plan.target.units if not self.path(unit, plan).is_file()]

    def build(
        self, plan: Plan, objects: Path, out: Path, kernel_flags: tuple[str, ...] = ()
    ) -> Path:
        """Build the planned library from kept objects and missing ones, which are kept then.

        kernel_flags: for missing units of a .cu; they must change no object, only how long it takes
        """
        missing = self.missing(plan)
        known = [self.path(unit, plan) for unit in plan.target.units if unit not in missing]
        for path in known:
            os.utime(path)  # it was used
        target = replace(
            plan.target,
            units=tuple(
                replace(unit, flags=(*unit.flags, *kernel_flags)) if _is_kernel(unit) else unit
                for unit in missing
            ),
            objects=tuple(map(str, known)),
        )
        library = build(replace(plan, target=target), objects, out)
        for unit in missing:
            self._keep(objects / unit.name, self.path(unit, plan))
        return library

    def forget_old(self) -> None:
        """Remove what has not been used for two weeks."""
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - _UNUSED_SECONDS:
                    path.unlink()

    def _keep(self, compiled: Path, kept: Path) -> None:
        partial = kept.with_name(f".{os.getpid()}-{kept.name}")
        shutil.copyfile(compiled, partial)
        os.replace(partial, kept)


def _is_kernel(unit: Unit) -> bool:
    return unit.source.endswith(".cu")


def included_files(source: Path) -> set[Path]:
    """The source and all files that it includes by a name in quotes, directly or not."""
    found: set[Path] = set()
    left = [source.resolve()]
    while left:
        path = left.pop()
        if path not in found:
            found.add(path)
            for name in _INCLUDE.findall(path.read_bytes()):
                left.append((path.parent / name.decode()).resolve())
    return found
