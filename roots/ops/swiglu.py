"""Gated linear unit with the swish gate (Shazeer, "GLU Variants Improve Transformer", 2020).

y = gate * sigmoid(gate) * up
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from roots.ops.dispatch import (
    AUTO,
    Implementation,
    accumulation_dtype,
    always_supported,
    request_for,
    select,
)


def swiglu(gate: Tensor, up: Tensor, *, implementation: str = AUTO) -> Tensor:
    """Return silu(gate) * up of two tensors of equal shape [..., F]."""
    run = select("swiglu", IMPLEMENTATIONS, request_for(gate), implementation).run
    result: Tensor = run(gate, up)
    return result


def swiglu_reference(gate: Tensor, up: Tensor) -> Tensor:
    """The formula in plain torch, in fp32 (float64 for float64)."""
    wide = accumulation_dtype(gate.dtype)
    wide_gate = gate.to(wide)
    return (wide_gate * torch.sigmoid(wide_gate) * up.to(wide)).to(gate.dtype)


class _Swiglu(torch.autograd.Function):
    """Saves gate and up only; backward computes the sigmoid again.

    With a = gate * sigmoid(gate):  dup = dy * a,  dgate = dy * up * (a + sigmoid(gate) * (1 - a)).
    """

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return torch.sigmoid(gate).mul_(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        sigmoid = torch.sigmoid(gate)
        active = gate * sigmoid
        slope = torch.lerp(active, torch.ones_like(active[..., :1]), sigmoid)
        return slope.mul_(grads[0]).mul_(up), active.mul_(grads[0])


def _swiglu_torch(gate: Tensor, up: Tensor) -> Tensor:
    """torch's silu for 16 bits, where it computes inside in fp32; the formula for wider types.

    In fp32 torch's silu takes an exponential of 20 units in the last place on a CPU, and its
    gradient exceeds twice the error of the plain formula.
    """
    if gate.dtype in (torch.bfloat16, torch.float16):
        return F.silu(gate) * up
    result: Tensor = _Swiglu.apply(gate, up)
    return result


IMPLEMENTATIONS = (
    Implementation("torch", _swiglu_torch, always_supported),
    Implementation("reference", swiglu_reference, always_supported),
)
