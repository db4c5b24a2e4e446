"""One build: write the ninja file, run ninja, put library, stamp and log where they are wanted.

Incremental in the folder of objects. The caller sees to it that one process at a time builds there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .ninja import ninja_file
from .stamp import Stamp, make_stamp, stamp_path, write_stamp
from .targets import Target
from .toolchain import BuildError, Toolchain


@dataclass(frozen=True)
class Plan:
    """What to build, with what, from the folder `csrc`."""

    target: Target
    tools: Toolchain
    csrc: Path

    def stamp(self) -> Stamp:
        """What the library will have been built from, as the sources are now."""
        return make_stamp(self.target, self.tools, self.csrc)


def build(plan: Plan, objects: Path, out: Path, *, keep_open: Sequence[int] = ()) -> Path:
    """Build in the folder `objects` and return the library's path in the folder `out`.

    The compilers' output (.log), the library and its stamp (.json) appear in this order, each whole
    or not at all: a library without a stamp is not finished. keep_open: descriptors that ninja and
    the compilers inherit, which holds a lock until the last of them has ended. Raises BuildError
    with the first error and the log's path.
    """
    target, csrc = plan.target, plan.csrc.resolve()
    if not (target.units or target.objects):
        raise BuildError(f"there are no sources of the {target.backend} library in {csrc}.")
    objects.mkdir(parents=True, exist_ok=True)
    stamp = plan.stamp()
    _write_if_new(objects / "build.ninja", ninja_file(target, plan.tools, csrc))
    _run_ninja(target, plan.tools, objects, keep_open)
    if plan.stamp() != stamp:
        raise BuildError(f"files in {csrc} were changed while they were compiled: build again.")
    out.mkdir(parents=True, exist_ok=True)
    return _deliver(target, stamp, objects, out)


def log_path(library: Path) -> Path:
    """Where the compilers' output of a library lies, with ptxas' counts of registers and spills."""
    return library.with_suffix(".log")


def _run_ninja(target: Target, tools: Toolchain, objects: Path, keep_open: Sequence[int]) -> None:
    log = objects / "ninja.log"
    command = [tools.ninja, "-C", str(objects), "-j", str(tools.jobs)]
    with log.open("wb") as output:
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=tuple(keep_open),
            check=False,
        )
    if result.returncode != 0:
        first = _first_error(log.read_text(encoding="utf-8", errors="replace"))
        raise BuildError(
            f"the {target.backend} library could not be compiled: {first} (all of it in {log})."
        )


def _first_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("collect2:")]
    for word in ("error:", "multiple definition", "undefined reference", "error", "FAILED"):
        for line in lines:
            if word in line:
                return line.rstrip(".")
    return lines[-1].rstrip(".") if lines else "ninja failed without a word"


def _deliver(target: Target, stamp: Stamp, objects: Path, out: Path) -> Path:
    """Copy to `out` under temporary names, then rename: a reader never sees a half-written file."""
    library = out / target.library
    partial = library.with_name(f".partial-{os.getpid()}-{target.library}")
    shutil.copyfile(objects / target.library, partial)
    partial.chmod(0o755)
    write_stamp(partial, stamp)
    log_path(partial).write_text(_unit_logs(target, objects), encoding="utf-8")
    stamp_path(library).unlink(missing_ok=True)
    os.replace(log_path(partial), log_path(library))
    os.replace(partial, library)
    os.replace(stamp_path(partial), stamp_path(library))
    return library


def _unit_logs(target: Target, objects: Path) -> str:
    parts = []
    for name in [*(unit.name for unit in target.units), target.library]:
        log = objects / f"{name}.log"
        text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
        parts.append(f"== {name}\n{text}")
    return "".join(parts)


def _write_if_new(path: Path, text: str) -> None:
    """Write `text` unless it is there: ninja reads the file's time."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
