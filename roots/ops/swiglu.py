"""Gated linear unit with the swish gate (Shazeer, "GLU Variants Improve Transformer", 2020).

    y = gate * sigmoid(gate) * up           (gate, up) = the halves of x + bias

Legend: F inner width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from roots.errors import RootsError, problem
from roots.ops.dispatch import (
    AUTO,
    Implementation,
    accumulation_dtype,
    always_supported,
    request_for,
    select,
)
from roots.ops.native import Kernel, native


def swiglu(x_2F: Tensor, bias_2F: Tensor | None = None, *, implementation: str = AUTO) -> Tensor:
    """Return silu(gate) * up, [..., F], of x [..., 2F] with gate and up side by side.

    ROOTS' kernel adds the bias on the way, writes the gradient of x as one tensor and keeps only x
    for it. Raises RootsError for an odd last dim and for a bias of another size.
    """
    _check(x_2F, bias_2F)
    run = select("swiglu", IMPLEMENTATIONS, request_for(x_2F), implementation).run
    result: Tensor = run(x_2F, bias_2F)
    return result


def swiglu_reference(x_2F: Tensor, bias_2F: Tensor | None = None) -> Tensor:
    """The formula in plain torch, in fp32 (float64 for float64)."""
    wide = accumulation_dtype(x_2F.dtype)
    z = x_2F.to(wide) if bias_2F is None else x_2F.to(wide) + bias_2F.to(wide)
    gate, up = z.chunk(2, dim=-1)
    return (gate * torch.sigmoid(gate) * up).to(x_2F.dtype)


def _check(x_2F: Tensor, bias_2F: Tensor | None) -> None:
    if x_2F.dim() == 0 or x_2F.shape[-1] % 2:
        rule = "must have an even last dim, gate and up side by side"
        raise RootsError(problem("x", list(x_2F.shape), rule, "concatenate gate and up"))
    if bias_2F is not None and bias_2F.shape != x_2F.shape[-1:]:
        rule = f"must have the size of the last dim of x {list(x_2F.shape)}"
        raise RootsError(problem("bias", list(bias_2F.shape), rule, "pass one number a column"))


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


def _swiglu_torch(x_2F: Tensor, bias_2F: Tensor | None) -> Tensor:
    """torch's silu for 16 bits, where it computes inside in fp32; the formula for wider types.

    In fp32 torch's silu takes an exponential of 20 units in the last place on a CPU, and its
    gradient exceeds twice the error of the plain formula.
    """
    gate, up = (x_2F if bias_2F is None else x_2F + bias_2F).chunk(2, dim=-1)
    if gate.dtype in (torch.bfloat16, torch.float16):
        return F.silu(gate) * up
    result: Tensor = _Swiglu.apply(gate, up)
    return result


def _swiglu_kernel(ops: Any, x_2F: Tensor, bias_2F: Tensor | None) -> Tensor:
    result: Tensor = ops.swiglu_forward(x_2F, bias_2F)
    return result


def _forward_fake(x: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


def _backward_fake(dy: Tensor, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    columns = 0 if bias is None else x.shape[-1]
    return x.new_empty(x.shape), x.new_empty(columns, dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ops: Any, ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor | None]:
    x, bias = ctx.saved_tensors
    dx, dbias = ops.swiglu_backward(dy, x, bias)
    return dx, None if bias is None else dbias.to(bias.dtype)


KERNELS = (
    Kernel("swiglu_forward", _forward_fake, _setup_context, _backward),
    Kernel("swiglu_backward", _backward_fake),
)

IMPLEMENTATIONS = (
    *native(KERNELS, _swiglu_kernel),
    Implementation("torch", _swiglu_torch, always_supported),
    Implementation("reference", swiglu_reference, always_supported),
)
