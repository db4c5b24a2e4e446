"""Parameters of the op tests: which implementations of an op, and on which devices.

A case is skipped, with the reason, only where its library cannot be built for want of a tool. A
library that should build and does not fails the test.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from typing import Any

import pytest

from roots.device import device_count

# Elements of the argument `shape` up to which the simulator takes part: it is slow.
SIMULATOR_ELEMENTS = 1 << 16

# Where ops are.
ROOMS = ("roots.ops", "roots.ops.few_rows")

# Implementations that are kernels of ROOTS: the namespace of their operators.
NAMESPACES = {"roots": "roots", "simulator": "roots_simulator"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    markers = metafunc.definition
    for mark in markers.iter_markers("all_implementations"):
        names = [each.name for each in _implementations(metafunc, mark)]
        if "device" in metafunc.fixturenames:
            cases = [(name, device) for name in names for device in _devices(name)]
            ids = ["-".join(case) for case in cases]
            metafunc.parametrize("implementation, device", cases, ids=ids)
        else:
            metafunc.parametrize("implementation", names)
    for mark in markers.iter_markers("plain_implementations"):
        names = [each.name for each in _implementations(metafunc, mark)]
        metafunc.parametrize("implementation", [name for name in names if name not in NAMESPACES])
    for mark in markers.iter_markers("all_kernels"):
        names = [each.name for each in _implementations(metafunc, mark)]
        cases = [
            (NAMESPACES[name], device)
            for name in names
            if name in NAMESPACES
            for device in _devices(name)
        ]
        ids = ["-".join(case) for case in cases]
        metafunc.parametrize("namespace, device", cases, ids=ids)


def pytest_collection_modifyitems(items: list[pytest.Item], config: pytest.Config) -> None:
    large = [item for item in items if _is_too_large(item)]
    if large:
        config.hook.pytest_deselected(items=large)
        items[:] = [item for item in items if item not in set(large)]


@pytest.fixture(autouse=True)
def _kernels_are_there(request: pytest.FixtureRequest) -> None:
    """Build, load and register the kernels of a case before its test runs."""
    params = _params(request.node)
    namespace = _namespace(params)
    if namespace is not None:
        backend = "simulator" if namespace == "roots_simulator" else params.get("device", "cpu")
        _need_library(backend, getattr(_op_module(request.module), "KERNELS", ()))


def _need_library(backend: Any, kernels: tuple[Any, ...]) -> None:
    from roots.device import build_environment
    from roots.ops.library.toolchain import BuildError, find_toolchain
    from roots.ops.native import library_reasons

    reasons = library_reasons(backend, kernels)
    if not reasons:
        return
    try:
        find_toolchain(
            build_environment(), needs_cuda=backend != "cpu", needs_nvcc=backend == "cuda"
        )
    except BuildError as error:
        pytest.skip(str(error))
    pytest.fail(" ".join(reasons))


def _implementations(metafunc: pytest.Metafunc, mark: pytest.Mark) -> tuple[Any, ...]:
    return mark.args[0] if mark.args else _op_module(metafunc.module).IMPLEMENTATIONS


def _op_module(module: Any) -> Any:
    """The op after which a test file is named; test_swiglu_more.py too is about swiglu."""
    stem = module.__name__.rpartition(".")[2].removeprefix("test_")
    while stem:
        for room in ROOMS:
            if importlib.util.find_spec(f"{room}.{stem}") is not None:
                found = importlib.import_module(f"{room}.{stem}")
                if hasattr(found, "IMPLEMENTATIONS"):
                    return found
        stem = stem.rpartition("_")[0]
    raise ModuleNotFoundError(f"{module.__name__} is named after no op of roots.ops")


def _devices(implementation: str) -> list[str]:
    """On the host runs everything, on a GPU everything but the simulator."""
    has_gpu = device_count() > 0 and implementation != "simulator"
    return ["cpu", "cuda"] if has_gpu else ["cpu"]


def _is_too_large(item: pytest.Item) -> bool:
    params = _params(item)
    simulated = _namespace(params) == "roots_simulator"
    return simulated and math.prod(params.get("shape", ())) > SIMULATOR_ELEMENTS


def _namespace(params: dict[str, Any]) -> str | None:
    """Where the kernels of a case live; None if it runs none of ROOTS' own."""
    named: str | None = params.get("namespace") or NAMESPACES.get(params.get("implementation", ""))
    return named


def _params(item: Any) -> dict[str, Any]:
    callspec = getattr(item, "callspec", None)
    return {} if callspec is None else dict(callspec.params)
