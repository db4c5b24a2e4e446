"""Libraries of the simulator with a bug in them, and runs of the tests that should find it.

Sources that a bug touches are compiled from a changed copy, the others once for all bugs; all
kernels without optimisation, which takes a quarter of the time, and with what they all include
compiled before, which halves the rest.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from roots.device import kernel_cache_folder
from roots.lock import Place, file_lock
from roots.ops.library.build import Plan
from roots.ops.library.ninja import include_flags
from roots.ops.library.targets import Target, make_target
from roots.ops.library.toolchain import Toolchain
from tests.helpers.sources import ROOT
from tests.simulator.fork_server import ForkServer
from tests.simulator.objects import KeptObjects
from tests.simulator.planted import PlantedBug

CSRC = ROOT / "csrc"
BUILD_SECONDS = 900.0
PLACE = Place("build folder", "the simulator is built there", "end the process that builds")


@dataclass(frozen=True)
class Folders:
    """Where things are built: by all processes of this run of the tests, and by this one alone."""

    shared: Path
    own: Path


class Planter:
    """Builds the simulator, as it is and with bugs."""

    def __init__(self, tools: Toolchain, folders: Folders, *, sanitize: bool) -> None:
        self._folders = folders
        target = _unoptimised(make_target("simulator", CSRC, sanitize=sanitize))
        self._plan = Plan(target, tools, CSRC)
        self._objects = KeptObjects(kernel_cache_folder() / "objects" / "kept")
        self._header = folders.shared / "simulator.h"
        with file_lock(folders.shared / "lock", BUILD_SECONDS, PLACE):
            if not (self.unchanged / target.library).is_file():
                self._objects.forget_old()
                self._build(CSRC, self.unchanged)

    @property
    def unchanged(self) -> Path:
        """The folder of the library without a bug."""
        return self._folders.shared / "unchanged"

    def plant(self, bug: PlantedBug) -> Path:
        """Compile and link with the bug; returns the library's folder."""
        name = re.sub(r"\W+", "_", f"{Path(bug.file).stem}_{bug.name}")
        folder = self._folders.own / name
        csrc = folder / "csrc"
        shutil.copytree(CSRC, csrc)
        path = csrc / "cuda" / bug.file
        text = path.read_text(encoding="utf-8")
        assert text.count(bug.old) == 1, f"{bug.old!r} is not once in csrc/cuda/{bug.file}"
        path.write_text(text.replace(bug.old, bug.new), encoding="utf-8")
        self._build(csrc, folder / "library")
        return folder / "library"

    def _build(self, csrc: Path, out: Path) -> None:
        plan = replace(self._plan, csrc=csrc)
        missing = self._objects.missing(plan)
        header: tuple[str, ...] = ()
        if any(unit.source.endswith(".cu") for unit in missing):
            header = ("-include", str(self._precompiled_header()))
        self._objects.build(plan, out.with_name("objects"), out, kernel_flags=header)

    def _precompiled_header(self) -> Path:
        """The header of the simulator, with which every kernel begins."""
        compiled = self._header.with_name("simulator.h.gch")
        if not compiled.is_file():
            target, tools = self._plan.target, self._plan.tools
            self._header.write_text(f'#include "{CSRC}/cuda/sim/cuda_sim.h"\n', encoding="utf-8")
            flags = next(unit.flags for unit in target.units if unit.source.endswith(".cu"))
            flags = tuple("c++-header" if flag == "c++" else flag for flag in flags)
            command = [*tools.compiler, *flags, *include_flags(target, tools)]
            partial = self._folders.own / compiled.name
            subprocess.run([*command, str(self._header), "-o", str(partial)], check=True)
            os.replace(partial, compiled)
        return self._header


def start_server(tools: Toolchain, folder: Path, *, sanitize: bool) -> ForkServer:
    """A server of runs; with sanitizers, with their run-time libraries before all others."""
    if not sanitize:
        return ForkServer({}, folder)
    libraries = (_run_time(tools, name) for name in ("libasan.so", "libubsan.so"))
    environment = {
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    }
    return ForkServer(environment, folder)


def _unoptimised(target: Target) -> Target:
    """The target with its kernels compiled at -O0, linked by the faster of GNU's two linkers."""
    units = (
        replace(unit, flags=(*unit.flags, "-O0")) if unit.source.endswith(".cu") else unit
        for unit in target.units
    )
    link = (*target.link, "-fuse-ld=gold") if shutil.which("ld.gold") else target.link
    return replace(target, units=tuple(units), link=link)


def _run_time(tools: Toolchain, name: str) -> str:
    command = [*tools.compiler, f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
