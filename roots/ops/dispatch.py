"""The choice between the implementations of an op: the first that gives no reason against itself.

Every op file has a tuple IMPLEMENTATIONS in order of preference. A call describes itself in a small
hashable Request; the choice is made once for every different request and then looked up, so that
dispatch costs about a microsecond. A wish ("torch", "reference", ...) that cannot be met raises
with all reasons; "auto" never fails, because a reference supports everything. Choices are logged.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from roots.errors import RootsError, problem
from roots.log import get_logger, log_once

AUTO = "auto"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Request(NamedTuple):
    """What an implementation needs to know of a call to tell whether it supports it.

    `features` holds words of the op's own: "dropout", "documents", "grouped", ...
    """

    dtype: torch.dtype
    device: str
    features: frozenset[str] = frozenset()
    head_size: int = 0


@dataclass(frozen=True, eq=False)
class Implementation:
    """One way of computing an op. `unsupported_reasons` returns full sentences, none if it can.

    by_name_only: why "auto" passes it over, always or (a function) for some requests, "" for none;
    it then runs only when asked for. Compared and hashed by identity, which keeps the look-up in
    `select` cheap.
    """

    name: str
    run: Callable[..., Any]
    unsupported_reasons: Callable[[Request], list[str]]
    by_name_only: str | Callable[[Request], str] = ""

    def reluctance(self, request: Request) -> str:
        """Why "auto" passes it over though it can run, "" if it does not."""
        return (
            self.by_name_only if isinstance(self.by_name_only, str) else self.by_name_only(request)
        )


@dataclass(frozen=True)
class OpStatus:
    """What `roots info` shows of one op, dtype and device: the choice and who was not chosen.

    `case` names the features of the request ("" for the plain call). `others` has, for every other
    implementation, its name and the reasons against it; no reasons: it runs when asked for.
    """

    op: str
    case: str
    dtype: str
    device: str
    chosen: str
    others: tuple[tuple[str, tuple[str, ...]], ...]


def always_supported(request: Request) -> list[str]:
    """No reason against any request: for what is composed of plain torch operations."""
    return []


def request_for(x: Tensor, *features: str, head_size: int = 0) -> Request:
    """Describe a call whose main operand is `x`."""
    return Request(x.dtype, x.device.type, frozenset(features), head_size)


def select(
    op: str, implementations: tuple[Implementation, ...], request: Request, wanted: str = AUTO
) -> Implementation:
    """Return the implementation `wanted`, or for "auto" the first without unsupported reasons.

    The choice is logged once, except under torch.compile, whose tracer knows no loggers. Raises
    RootsError for an unknown name (listing the known ones) and for a wish that cannot be met
    (listing every reason).
    """
    if torch.compiler.is_compiling():
        return _choose(op, implementations, request, wanted)
    return _choose_and_log(op, implementations, request, wanted)


@functools.lru_cache(maxsize=4096)
def _choose_and_log(
    op: str, implementations: tuple[Implementation, ...], request: Request, wanted: str
) -> Implementation:
    chosen = _choose(op, implementations, request, wanted)
    message = f"ops.{op}: {chosen.name} for {dtype_name(request.dtype)} on {request.device}"
    log_once(get_logger("ops"), message)
    return chosen


def _choose(
    op: str, implementations: tuple[Implementation, ...], request: Request, wanted: str
) -> Implementation:
    if wanted == AUTO:
        return _first_supported(op, implementations, request)
    chosen = _named(op, implementations, wanted)
    reasons = chosen.unsupported_reasons(request)
    if reasons:
        rule = "cannot run here: " + " ".join(reasons).rstrip(".")
        raise RootsError(problem(f"ops.{op}", wanted, rule, 'use "auto"'))
    return chosen


def _first_supported(
    op: str, implementations: Sequence[Implementation], request: Request
) -> Implementation:
    for implementation in implementations:
        if implementation.reluctance(request) or implementation.unsupported_reasons(request):
            continue
        return implementation
    raise AssertionError(f"{op}: the reference must support every request, not {request}")


def _named(op: str, implementations: Sequence[Implementation], wanted: str) -> Implementation:
    for implementation in implementations:
        if implementation.name == wanted:
            return implementation
    known = ", ".join([AUTO, *(implementation.name for implementation in implementations)])
    raise RootsError(
        problem(f"ops.{op}", wanted, "is no implementation of this op", f"use {known}")
    )


def status_of(
    op: str,
    implementations: tuple[Implementation, ...],
    devices: Iterable[str],
    cases: Iterable[str] = ("",),
) -> list[OpStatus]:
    """Ask every implementation of `op` about every device, case and dtype."""
    rows = []
    for device in devices:
        for case in cases:
            for dtype in DTYPES:
                request = Request(dtype, device, frozenset(case.split()), head_size=64)
                chosen = _first_supported(op, implementations, request)
                others = tuple(
                    (each.name, _reasons_against(each, request))
                    for each in implementations
                    if each is not chosen
                )
                rows.append(OpStatus(op, case, dtype_name(dtype), device, chosen.name, others))
    return rows


def _reasons_against(implementation: Implementation, request: Request) -> tuple[str, ...]:
    """Why "auto" does not take it: what it waits for, or what it cannot do."""
    reluctance = implementation.reluctance(request)
    if reluctance:
        return (f"runs when asked for by name: {reluctance}",)
    return tuple(implementation.unsupported_reasons(request))


def dtype_name(dtype: torch.dtype) -> str:
    """Spell a dtype as torch does, without its module: "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums over `dtype` are carried: float32, or float64 for itself."""
    return torch.float64 if dtype == torch.float64 else torch.float32
