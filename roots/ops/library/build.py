"""One build: write the ninja file, run ninja, put library, stamp and log where they are wanted.

Incremental in the folder of objects. The caller sees to it that one process at a time builds there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .ninja import ninja_file
from .stamp import Stamp, make_stamp, stamp_path, write_stamp
from .targets import Target
from .toolchain import BuildError, Toolchain


def build(
    target: Target,
    tools: Toolchain,
    csrc: Path,
    objects: Path,
    out: Path,
    *,
    keep_open: Sequence[int] = (),
) -> Path:
    """Build `target` from the folder `csrc` and return the library's path in the folder `out`.

    The compilers' output (.log), the library and its stamp (.json) appear in this order, each whole
    or not at all: a library without a stamp is not finished. keep_open: descriptors that ninja and
    the compilers inherit, which holds a lock until the last of them has ended. Raises BuildError
    with the first error and the log's path.
    """
    if not target.units:
        raise BuildError(f"there are no sources of the {target.backend} library in {csrc}.")
    csrc = csrc.resolve()
    objects.mkdir(parents=True, exist_ok=True)
    stamp = make_stamp(target, tools, csrc)
    _write_if_new(objects / "build.ninja", ninja_file(target, tools, csrc))
    _run_ninja(target, tools, objects, keep_open)
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
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for word in ("error:", "error", "undefined reference", "FAILED", "fatal"):
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
