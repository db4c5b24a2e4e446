"""Libraries of the simulator with a bug in them, and runs of the tests that should find it.

The sources that a bug touches are compiled from a changed copy and linked with the objects of the
unchanged ones; all kernels without optimisation, which takes a quarter of the time. Tests run in
processes of their own: forked from one that has imported torch, or, with sanitizers, which must
come first in a process, started anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import multiprocessing
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from roots.device import kernel_cache_folder
from roots.lock import Place, file_lock
from roots.ops.library.build import Plan, build
from roots.ops.library.targets import Target, make_target
from roots.ops.library.toolchain import Toolchain
from tests.helpers.sources import ROOT
from tests.simulator.planted import PlantedBug

CSRC = ROOT / "csrc"
_PLACE = Place("kernel cache", "the simulator is built there", "end the process that builds")
_BUILD_SECONDS = 900.0
_RUN_SECONDS = 240.0
_M_PERTURB = -6  # of mallopt: fill what malloc gives with the complement of a byte
_QUIET = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header"]


@dataclass(frozen=True)
class Outcome:
    """How a run of tests ended: pytest's exit code, minus a signal, or None for a run too long."""

    code: int | None
    output: str

    @property
    def passed(self) -> bool:
        """Whether all tests passed."""
        return self.code == 0

    @property
    def failed(self) -> bool:
        """Whether a test failed, or ended the process, or hung; not: none was found or loaded."""
        if self.code is None or self.code < 0:
            return True
        sanitizer = "Sanitizer" in self.output or "runtime error:" in self.output
        missing = "kernels are missing" in self.output
        return (self.code == 1 or (self.code > 0 and sanitizer)) and not missing


class Planter:
    """Builds the simulator, as it is and with bugs, in a folder of its own."""

    def __init__(self, tools: Toolchain, folder: Path, *, sanitize: bool) -> None:
        self._tools = tools
        self._folder = folder
        self._target = _unoptimised(make_target("simulator", CSRC, sanitize=sanitize))
        self._objects = self._build_objects(sanitize)

    @property
    def unchanged(self) -> Path:
        """The folder of the library without a bug."""
        return self._folder / "unchanged"

    def plant(self, bug: PlantedBug) -> Path:
        """Compile and link with the bug; returns the library's folder."""
        folder = self._folder / re.sub(r"\W+", "_", f"{Path(bug.file).stem}_{bug.name}")
        csrc = folder / "csrc"
        shutil.copytree(CSRC, csrc)
        path = csrc / "cuda" / bug.file
        text = path.read_text(encoding="utf-8")
        assert text.count(bug.old) == 1, f"{bug.old!r} is not once in csrc/cuda/{bug.file}"
        path.write_text(text.replace(bug.old, bug.new), encoding="utf-8")
        sources = users(bug.file)
        units = tuple(unit for unit in self._target.units if unit.source in sources)
        others = [unit for unit in self._target.units if unit.source not in sources]
        objects = tuple(str(self._objects / unit.name) for unit in others)
        target = dataclasses.replace(self._target, units=units, link=(*objects, *self._target.link))
        build(Plan(target, self._tools, csrc), folder / "objects", folder / "library")
        return folder / "library"

    def _build_objects(self, sanitize: bool) -> Path:
        """Build with the objects of the cache, which others build too, and keep a copy of them."""
        kind = "sanitized" if sanitize else "plain"
        shared = kernel_cache_folder() / "objects" / f"planted-{kind}-{ROOT.name}"
        mine = self._folder / "objects"
        with file_lock(shared.with_suffix(".lock"), _BUILD_SECONDS, _PLACE) as held:
            keep_open = [held] if held else []
            plan = Plan(self._target, self._tools, CSRC)
            build(plan, shared, self.unchanged, keep_open=keep_open)
            _copy_objects(self._target, shared, mine)
        return mine


def users(file: str) -> set[str]:
    """The sources, relative to csrc, that are or include csrc/cuda/`file`, directly or not."""
    includes = {
        path: set(re.findall(r'#include "(?:[\w/.]*/)?([\w.]+)"', path.read_text(encoding="utf-8")))
        for path in [*(CSRC / "cuda").glob("*.cu"), *(CSRC / "cuda").glob("*.cuh")]
    }
    found = {Path(file).name}
    while more := {path.name for path, names in includes.items() if names & found} - found:
        found |= more
    return {f"cuda/{name}" for name in found if name.endswith(".cu")}


def run_tests(library: Path, check: str, seeds: tuple[int, ...]) -> Outcome:
    """Run the tests that `check` names with the library in a folder, until a seed fails one."""
    output = library / "output.txt"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "torch", "hypothesis", "roots.ops"])
    process = context.Process(target=_run_in_fork, args=(library, check, seeds, output))
    process.start()
    process.join(_RUN_SECONDS)
    ended = process.exitcode is not None
    if not ended:
        process.kill()
        process.join()
    text = output.read_text(encoding="utf-8", errors="replace") if output.is_file() else ""
    return Outcome(process.exitcode if ended else None, text)


def run_sanitized(library: Path, check: str, seeds: tuple[int, ...], tools: Toolchain) -> Outcome:
    """The same in new processes, with the sanitizers' run-time libraries before all others."""
    outcome = Outcome(0, "")
    for seed in seeds:
        command = [sys.executable, "-m", "pytest", *_QUIET, *shlex.split(check)]
        environment = {
            **os.environ,
            "LD_PRELOAD": " ".join(
                _run_time(tools, name) for name in ("libasan.so", "libubsan.so")
            ),
            "ASAN_OPTIONS": "detect_leaks=0",
            "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
            "ROOTS_KERNELS": str(library),
            "ROOTS_SIMULATOR_SEED": str(seed),
        }
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=2 * _RUN_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            return Outcome(None, (error.stdout or b"").decode(errors="replace"))
        outcome = Outcome(done.returncode, done.stdout.decode(errors="replace"))
        if not outcome.passed:
            break
    return outcome


def _run_in_fork(library: Path, check: str, seeds: tuple[int, ...], output: Path) -> None:
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(ROOT)
    os.environ["ROOTS_KERNELS"] = str(library)
    ctypes.CDLL(None).mallopt(_M_PERTURB, 1)  # what a kernel forgets to write is no old result
    for seed in seeds:
        os.environ["ROOTS_SIMULATOR_SEED"] = str(seed)
        code = int(pytest.main([*_QUIET, *shlex.split(check)]))
        if code != 0:
            break
    sys.stdout.flush()
    os._exit(code)


def _unoptimised(target: Target) -> Target:
    """The target with its kernels compiled at -O0."""
    units = (
        dataclasses.replace(unit, flags=(*unit.flags, "-O0"))
        if unit.source.endswith(".cu")
        else unit
        for unit in target.units
    )
    return dataclasses.replace(target, units=tuple(units))


def _copy_objects(target: Target, source: Path, to: Path) -> None:
    for unit in target.units:
        (to / unit.name).parent.mkdir(parents=True, exist_ok=True)
        (to / unit.name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            os.link(source / unit.name, to / unit.name)
            continue
        shutil.copyfile(source / unit.name, to / unit.name)


def _run_time(tools: Toolchain, name: str) -> str:
    command = [*tools.compiler, f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
