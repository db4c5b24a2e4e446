"""ROOTS' own kernels as implementations of an op: "roots" on CPU and CUDA, and "simulator".

An op that is for a CPU alone has "roots" there, and neither of the others.

The kernels live in libraries (roots.ops.library) that are loaded at the first use of an op; then
its fakes and autograd formulas are registered with torch.library, once for each namespace: `roots`
for the CPU and CUDA libraries, `roots_simulator` for the CUDA sources that run on the host.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from roots.ops.dispatch import DTYPES, Implementation, Request, always_supported, dtype_name
from roots.ops.library.constant import constant_in_graphs
from roots.ops.library.load import load

Backend = Literal["cpu", "cuda", "simulator"]


@dataclass(frozen=True, eq=False)
class Kernel:
    """One operator of csrc/schemas.h (or csrc/cpu/schemas.h) in Python.

    fake:          from the operands' shapes to empty results
    setup_context: (ctx, inputs, output) keeps what backward needs
    backward:      (ops, ctx, *grads) -> a gradient for every input; `ops` is the namespace

    The last two are missing for what has no gradient.
    """

    name: str
    fake: Callable[..., Any]
    setup_context: Callable[..., None] | None = None
    backward: Callable[..., Any] | None = None


def native(
    kernels: tuple[Kernel, ...],
    run: Callable[..., Any],
    reasons: Callable[[Request], list[str]] = always_supported,
    *,
    cuda_reasons: Callable[[Request], list[str]] = always_supported,
    by_name_only: str | Callable[[Request], str] = "",
) -> tuple[Implementation, Implementation]:
    """Return the implementations "roots" and "simulator" of an op.

    run: called as run(ops, ...) with the namespace of the kernels (torch.ops.roots or
    torch.ops.roots_simulator) before the op's own arguments. reasons: what the kernels cannot do,
    besides other dtypes and a missing library; cuda_reasons: what those of CUDA, and hence the
    simulator's, cannot do besides. by_name_only: when "auto" passes "roots" over.
    """

    @constant_in_graphs
    def missing(backend: Backend) -> list[str]:
        return library_reasons(backend, kernels)

    def roots_reasons(request: Request) -> list[str]:
        found = _dtype_reasons(request) + reasons(request)
        if request.device == "cuda":
            found += cuda_reasons(request)
        if request.device not in ("cpu", "cuda"):
            found.append(f"the kernels run on cpu and cuda, not on {request.device}.")
        elif not found:
            found += missing(request.device)
        return found

    def simulator_reasons(request: Request) -> list[str]:
        found = _dtype_reasons(request) + reasons(request) + cuda_reasons(request)
        if request.device != "cpu":
            found.append(f"the simulator runs on cpu tensors, not on {request.device}.")
        elif not found:
            found += missing("simulator")
        return found

    return (
        Implementation(
            "roots", functools.partial(_call, "roots", run), roots_reasons, by_name_only
        ),
        Implementation(
            "simulator",
            functools.partial(_call, "roots_simulator", run),
            simulator_reasons,
            by_name_only="it runs the CUDA sources on the host, thousands of times slower.",
        ),
    )


def native_on_cpu(
    kernels: tuple[Kernel, ...],
    run: Callable[..., Any],
    reasons: Callable[[Request], list[str]] = always_supported,
) -> Implementation:
    """Return the implementation "roots" of an op that has kernels for a CPU alone; see `native`."""

    @constant_in_graphs
    def missing() -> list[str]:
        return library_reasons("cpu", kernels)

    def roots_reasons(request: Request) -> list[str]:
        found = _dtype_reasons(request) + reasons(request)
        if request.device != "cpu":
            found.append(f"the kernel runs on cpu, not on {request.device}.")
        return found or missing()

    return Implementation("roots", functools.partial(_call, "roots", run), roots_reasons)


def _call(namespace: str, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return run(getattr(torch.ops, namespace), *args, **kwargs)


def _dtype_reasons(request: Request) -> list[str]:
    if request.dtype in DTYPES:
        return []
    known = ", ".join(dtype_name(dtype) for dtype in DTYPES)
    return [f"the kernels are for {known}, not for {dtype_name(request.dtype)}."]


@functools.cache
def library_reasons(backend: Backend, kernels: tuple[Kernel, ...]) -> list[str]:
    """Load the library, register `kernels`; the reason why that cannot be, if any."""
    reason = load(backend)
    if reason:
        return [reason]
    _register("roots_simulator" if backend == "simulator" else "roots", kernels)
    return []


@functools.cache
def _register(namespace: str, kernels: tuple[Kernel, ...]) -> None:
    ops = getattr(torch.ops, namespace)
    for kernel in kernels:
        name = f"{namespace}::{kernel.name}"
        torch.library.register_fake(name, kernel.fake)
        if kernel.backward is not None:
            backward = functools.partial(kernel.backward, ops)
            torch.library.register_autograd(name, backward, setup_context=kernel.setup_context)
