"""Root-mean-square normalisation (Zhang, Sennrich, 2019) over the last dim.

y = x / sqrt(mean(x^2) + epsilon) * weight        statistics in fp32
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


def rms_norm(
    x: Tensor, weight_H: Tensor, epsilon: float = 1e-5, *, implementation: str = AUTO
) -> Tensor:
    """Normalise x [..., H] over its last dim; the result has its shape and dtype.

    The mean square is computed in fp32 for 16-bit x; the gradient of the weight is summed in fp32
    and returned in its dtype.
    """
    run = select("rms_norm", IMPLEMENTATIONS, request_for(x), implementation).run
    result: Tensor = run(x, weight_H, epsilon)
    return result


def rms_norm_reference(x: Tensor, weight_H: Tensor, epsilon: float) -> Tensor:
    """The formula in plain torch, in fp32 (float64 for float64)."""
    wide = accumulation_dtype(x.dtype)
    wide_x = x.to(wide)
    scale = (wide_x.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    return (wide_x * scale * weight_H.to(wide)).to(x.dtype)


class _RmsNorm(torch.autograd.Function):
    """The formula with few temporaries; saves x and one number a row, and normalises x again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_H: Tensor, epsilon: float) -> Tensor:
        # Strided elements torch adds one by one, dense ones pairwise, which is thrice as exact.
        x = x if x.stride(-1) == 1 else x.contiguous()
        wide_x = x.to(accumulation_dtype(x.dtype))
        norm = torch.linalg.vector_norm(wide_x, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight_H, scale)
        return (wide_x * scale).mul_(weight_H).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight_H, scale = ctx.saved_tensors
        # With n = x * scale: dn = dy * weight, dx = scale * (dn - n * mean(dn * n)).
        normal = x * scale
        grad_y = grads[0].to(normal.dtype)
        grad_weight_H = (grad_y * normal).flatten(0, -2).sum(0).to(weight_H.dtype)
        grad_n = grad_y * weight_H
        shared = (grad_n * normal).mean(-1, keepdim=True)
        grad_x = grad_n.sub_(normal.mul_(shared)).mul_(scale)
        return grad_x.to(x.dtype), grad_weight_H, None


def _rms_norm_torch(x: Tensor, weight_H: Tensor, epsilon: float) -> Tensor:
    """torch's kernel where it has one, which on a CPU it has not: composed there, it takes 3x."""
    if x.device.type == "cuda":
        return F.rms_norm(x, weight_H.shape, weight_H, epsilon)
    result: Tensor = _RmsNorm.apply(x, weight_H, epsilon)
    return result


IMPLEMENTATIONS = (
    Implementation("torch", _rms_norm_torch, always_supported),
    Implementation("reference", rms_norm_reference, always_supported),
)
