"""Which of many tensors is the first to hold an infinity or NaN, without waiting for the device.

One pass over the memory of all of them; the answer stays on their device. For telling which
gradient overflowed (roots/training/engine/overflow.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from roots.errors import RootsError, problem
from roots.ops.dispatch import AUTO, DTYPES, Implementation, always_supported, request_for, select
from roots.ops.native import Kernel, native


def check_finite(tensors: Sequence[Tensor], *, implementation: str = AUTO) -> Tensor:
    """Return int64 [1]: the smallest i such that tensors[i] is not all finite, or -1.

    tensors: at least one, of any shapes, strides and floating dtypes, mixed or not, all on one
    device, where the result is too; those that are not dense in memory are copied. The host does
    not wait. No gradient.

    Raises RootsError for an empty list and for tensors on several devices.
    """
    _validate(tensors)
    with torch.no_grad():
        request = request_for(_decisive(tensors))
        run = select("check_finite", IMPLEMENTATIONS, request, implementation).run
        result: Tensor = run(list(tensors))
    return result


def check_finite_reference(tensors: Sequence[Tensor]) -> Tensor:
    """The formula in plain torch."""
    return _first(torch.stack([~tensor.isfinite().all() for tensor in tensors]))


def check_finite_torch(tensors: Sequence[Tensor]) -> Tensor:
    """By the largest magnitudes, which torch takes of all tensors of a dtype at once."""
    some = [tensor if tensor.numel() > 0 else tensor.new_zeros(1) for tensor in tensors]
    largest = torch._foreach_norm(some, torch.inf)
    return _first(torch.stack([~each.isfinite() for each in largest]))


def _first(bad: Tensor) -> Tensor:
    """bad: bool [number of tensors]."""
    index = torch.arange(len(bad), device=bad.device)
    first = index.masked_fill(~bad, len(bad)).amin(0, keepdim=True)
    return first.masked_fill(first == len(bad), -1)


def _validate(tensors: Sequence[Tensor]) -> None:
    if not tensors:
        rule, fix = "must hold at least one tensor", "call it only where there is one"
        raise RootsError(problem("tensors of check_finite", "[]", rule, fix))
    for i, tensor in enumerate(tensors):
        if tensor.device != tensors[0].device:
            name = f"device of tensor {i} of check_finite"
            rule = f"must be that of tensor 0, {tensors[0].device}"
            fix = "call it once for each device"
            raise RootsError(problem(name, str(tensor.device), rule, fix))


def _decisive(tensors: Sequence[Tensor]) -> Tensor:
    """The one that decides whether the kernels can run: of a dtype which they do not know."""
    return next((each for each in tensors if each.dtype not in DTYPES), tensors[0])


def _native(ops: Any, tensors: list[Tensor]) -> Tensor:
    result: Tensor = ops.check_finite(tensors)
    return result


def _fake(tensors: list[Tensor]) -> Tensor:
    return tensors[0].new_empty(1, dtype=torch.int64)


KERNELS = (Kernel("check_finite", _fake),)
IMPLEMENTATIONS = (
    *native(KERNELS, _native),
    Implementation("torch", check_finite_torch, always_supported),
    Implementation("reference", check_finite_reference, always_supported),
)
