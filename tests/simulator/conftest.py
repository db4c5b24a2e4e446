"""The library of tests/simulator/kernels, compiled with the simulator."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from roots.device import build_environment
from roots.lock import Place, file_lock
from roots.ops.library.build import Plan, build
from roots.ops.library.targets import Target, Unit, make_target
from roots.ops.library.toolchain import BuildError, Toolchain, find_toolchain
from tests.helpers.sources import ROOT

CSRC = ROOT / "csrc"
KERNELS = ROOT / "tests" / "simulator" / "kernels"
BUILD = ROOT / "build" / "kernels"
PLACE = Place("build folder", "kernels are built there", "end the process that builds")
TIMEOUT_SECONDS = 900.0


def need_toolchain() -> Toolchain:
    """The tools of a simulator build; skips the test where one is missing."""
    try:
        return find_toolchain(build_environment(), needs_cuda=True)
    except BuildError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def call() -> Callable[..., str]:
    """call("name", arguments...): run an entry of the kernels; returns what went wrong, or ""."""
    library = ctypes.CDLL(str(_build_kernels()))

    def call(name: str, *arguments: Any) -> str:
        entry = library[name]
        entry.restype = ctypes.c_char_p
        return str(entry(*map(_argument, arguments)).decode())

    return call


@pytest.fixture(params=range(8), ids=lambda seed: f"seed{seed}")
def seed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The schedule of the simulator."""
    monkeypatch.setenv("ROOTS_SIMULATOR_SEED", str(request.param))
    return int(request.param)


def _argument(value: Any) -> Any:
    return value.ctypes.data_as(ctypes.c_void_p) if isinstance(value, np.ndarray) else value


def _build_kernels() -> Path:
    tools = need_toolchain()
    objects = BUILD / "objects-simulator-kernels"
    with file_lock(objects.with_suffix(".lock"), TIMEOUT_SECONDS, PLACE) as held:
        keep_open = [held] if held else []
        plan = Plan(_target(), tools, CSRC)
        return build(plan, objects, objects / "library", keep_open=keep_open)


def _target() -> Target:
    """The simulator's own sources, and the kernels with the flags of csrc/cuda."""
    whole = make_target("simulator", CSRC)
    simulator = [unit for unit in whole.units if unit.name.startswith("sim/")]
    flags = ("-x", "c++", *simulator[0].flags, "-I", str(CSRC))
    sources = sorted(KERNELS.glob("*.cu"))
    kernels = [Unit(f"kernels/{path.name}.o", str(path), "cxx", flags) for path in sources]
    headers = tuple(name for name in whole.files if name.startswith("cuda/"))
    return Target(
        backend="simulator",
        units=(*simulator, *kernels),
        files=headers,
        link=("-fopenmp",),
        includes=("cuda",),
        architectures=(),
    )
