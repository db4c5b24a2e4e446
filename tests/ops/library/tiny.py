"""A kernel library of a few lines, a compiler that can be stopped, and processes that build."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from roots.ops.library.build import Plan
from roots.ops.library.targets import Backend, make_target
from roots.ops.library.toolchain import find_toolchain
from tests.helpers.sources import ROOT

SOURCES = {
    "schemas.h": (
        '#pragma once\n#define VISIBLE extern "C" __attribute__((visibility("default")))\n'
    ),
    "common.h": "#pragma once\n#define TINY 1\n",
    "binding/schemas.cpp": '#include "../schemas.h"\nVISIBLE int tiny() { return 7; }\n',
    "binding/swiglu.cpp": (
        '#include "../common.h"\n#include "../schemas.h"\nVISIBLE int bound() { return TINY; }\n'
    ),
    "binding/cpu/cpu_schemas.cpp": '#include "../../cpu/schemas.h"\nint rows() { return ROWS; }\n',
    "cpu/schemas.h": "#pragma once\n#define ROWS 16\n",
    "cpu/swiglu.cpp": "namespace ROOTS_CAPABILITY {\nint swiglu() { return 2; }\n}\n",
    "cpu/softmax.cpp": "namespace ROOTS_CAPABILITY {\nint softmax() { return 3; }\n}\n",
    "cuda/swiglu.cu": '#include "../common.h"\n__global__ void twice(float* x) { *x *= 2; }\n',
    "cuda/sm90/wide.cu": "__global__ void wide(float* x) { *x *= 3; }\n",
    "cuda/sim/run.cpp": 'extern "C" int simulated() { return 1; }\n',
}
CPU_UNITS = 7

# Stands for the compiler. Counts its calls; with a gate, leaves half an object file, says that it
# has begun, and goes on when the gate opens.
COMPILER = """#!/bin/sh
case "$*" in *--version*) exec c++ "$@" ;; esac
case "$*" in *" -c "*)
    echo "$*" >> "{folder}/calls"
    if [ -n "$GATE" ] && [ -p "$GATE.begun" ]; then
        for object; do :; done
        printf 'half an object' > "$object"
        echo begun > "$GATE.begun"
        read -r line < "$GATE.open"
    fi ;;
esac
exec c++ "$@"
"""

# Builds in the cache folder argv[1] from the sources argv[2], and tells how that went. The package
# roots.ops is an empty one here: it would import torch, which takes seconds and is not needed.
BUILDER = """
import importlib.util, sys, types
from pathlib import Path
package = types.ModuleType("roots.ops")
package.__path__ = [str(Path(importlib.util.find_spec("roots").origin).parent / "ops")]
sys.modules["roots.ops"] = package
from roots.errors import RootsError
from roots.ops.library.cache import Cache
from roots.ops.library.toolchain import BuildError
from tests.ops.library.tiny import cpu_plan
folder, csrc, timeout = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
plan = cpu_plan(csrc)
print("ready", flush=True)
sys.stdin.readline()
try:
    print(Cache(folder, timeout).find_or_build(plan), flush=True)
except (BuildError, RootsError) as error:
    print(f"error: {error}", flush=True)
"""


def write_sources(csrc: Path) -> Path:
    """Write the tiny kernels into the folder `csrc`."""
    for name, text in SOURCES.items():
        path = csrc / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return csrc


def cpu_plan(csrc: Path) -> Plan:
    """The tiny CPU library with the tools of this machine."""
    return plan_for("cpu", csrc)


def plan_for(backend: Backend, csrc: Path) -> Plan:
    """The tiny library of `backend` with the tools that the environment names."""
    tools = find_toolchain(os.environ, needs_cuda=backend != "cpu", needs_nvcc=backend == "cuda")
    return Plan(make_target(backend, csrc), tools, csrc)


@dataclass(frozen=True)
class Workshop:
    """Sources, cache and compiler of a test, in one temporary folder."""

    folder: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def csrc(self) -> Path:
        return self.folder / "csrc"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def gate(self) -> Path:
        return self.folder / "gate"

    def prepare(self) -> Workshop:
        """Write sources, compiler and gate."""
        write_sources(self.csrc)
        compiler = self.folder / "compiler"
        compiler.write_text(COMPILER.replace("{folder}", str(self.folder)), encoding="utf-8")
        compiler.chmod(0o755)
        os.mkfifo(f"{self.gate}.begun")
        os.mkfifo(f"{self.gate}.open")
        return self

    def start(self, *, gated: bool = False, timeout: float = 60.0) -> subprocess.Popen[str]:
        """Start a process that builds once it is told to, in a session of its own.

        Its first compiler stops at the gate if `gated`.
        """
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "CXX": str(self.folder / "compiler"),
            "GATE": str(self.gate) if gated else "",
            "MAX_JOBS": "1",
        }
        command = [sys.executable, "-c", BUILDER, str(self.cache), str(self.csrc), str(timeout)]
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    def wait_for_compiler(self) -> None:
        """Return when a compiler has begun its object file; it then waits at the gate."""
        assert Path(f"{self.gate}.begun").read_text(encoding="utf-8") == "begun\n"

    def open_gate(self) -> None:
        """Let the compiler that waits go on, and those after it pass."""
        Path(f"{self.gate}.begun").unlink()
        Path(f"{self.gate}.open").write_text("go\n", encoding="utf-8")

    def calls(self) -> int:
        """How many units were handed to the compiler so far."""
        path = self.folder / "calls"
        return len(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0


def go(process: subprocess.Popen[str]) -> None:
    """Tell a process that is ready to build."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def wait_until_it_waits(process: subprocess.Popen[str]) -> None:
    """Return when a process has opened the lock, which somebody else holds."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.readlink(descriptor).endswith(".lock"):
                    return
    raise AssertionError("the process did not come to the lock in a minute")


def kill_all(process: subprocess.Popen[str]) -> None:
    """SIGKILL to a process and everything it started (ninja gives each compiler its own group)."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text(encoding="utf-8").rpartition(") ")[2].split()
            if int(fields[3]) == process.pid:
                os.kill(int(folder.name), signal.SIGKILL)
        except OSError:
            continue
    process.wait()


def outcome(process: subprocess.Popen[str]) -> str:
    """The line by which a process says how its build went."""
    return process.communicate(timeout=120)[0].strip()
