"""Rotary position embedding (Su et al., "RoFormer", 2021), half-split as in GPT-NeoX and Llama.

    angle[t, r] = position[t] * base^(-2r / rotary_size)        r < R = rotary_size / 2
    y[r]     = x[r] * cos[r] - x[r + R] * sin[r]
    y[r + R] = x[r + R] * cos[r] + x[r] * sin[r]                the other dims of the head are kept

Legend: B rows, T tokens, N heads, D head size, R angles of a token (half of the rotated dims).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from roots.errors import RootsError, problem
from roots.ops.dispatch import (
    AUTO,
    Implementation,
    accumulation_dtype,
    always_supported,
    request_for,
    select,
)


def rotary_table(
    positions: Tensor, rotary_size: int, base: float = 10000.0, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Return (cos, sin) of the angles of int64 `positions` [T] or [B, T]: fp32, [..., R].

    The angles are computed in float64: fp32 has lost two digits at position 100,000. Raises
    RootsError for an odd rotary_size.
    """
    if rotary_size % 2 or rotary_size < 2:
        rule = "must be even and at least 2, since dims are rotated in pairs"
        raise RootsError(problem("rotary_size", rotary_size, rule, "change model.rotary_fraction"))
    device = positions.device if device is None else device
    exponents_R = torch.arange(0, rotary_size, 2, dtype=torch.float64, device=device) / rotary_size
    angles = positions.to(device, torch.float64)[..., None] * base**-exponents_R
    return angles.cos().float(), angles.sin().float()


def rotary(x_BTND: Tensor, cos: Tensor, sin: Tensor, *, implementation: str = AUTO) -> Tensor:
    """Rotate the first 2R dims of every head of x_BTND by the angles of its token.

    cos, sin: fp32 of rotary_table, [T, R] or [B, T, R]. Raises RootsError if the head is smaller
    than what is to be rotated.
    """
    if 2 * cos.shape[-1] > x_BTND.shape[-1]:
        rule = f"must be at least the {2 * cos.shape[-1]} dims that the table rotates"
        raise RootsError(
            problem("head size", x_BTND.shape[-1], rule, "make a smaller rotary table")
        )
    # Heads are broadcast over; [T, R] becomes [T, 1, R], [B, T, R] becomes [B, T, 1, R].
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    run = select("rotary", IMPLEMENTATIONS, request_for(x_BTND), implementation).run
    result: Tensor = run(x_BTND, cos, sin)
    return result


def rotary_reference(x_BTND: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The formula in plain torch, in fp32 (float64 for float64)."""
    wide = accumulation_dtype(x_BTND.dtype)
    half = cos.shape[-1]
    first, second = x_BTND[..., :half].to(wide), x_BTND[..., half : 2 * half].to(wide)
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return torch.cat((rotated.to(x_BTND.dtype), x_BTND[..., 2 * half :]), dim=-1)


def _rotate(x_BTND: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    """Rotate by sign * angle into one new tensor."""
    half = cos.shape[-1]
    wide = accumulation_dtype(x_BTND.dtype)
    first, second = x_BTND[..., :half].to(wide), x_BTND[..., half : 2 * half].to(wide)
    y_BTND = torch.empty(x_BTND.shape, dtype=x_BTND.dtype, device=x_BTND.device)
    y_BTND[..., :half] = (first * cos).addcmul_(second, sin, value=-sign)
    y_BTND[..., half : 2 * half] = (second * cos).addcmul_(first, sin, value=sign)
    if 2 * half < x_BTND.shape[-1]:
        y_BTND[..., 2 * half :] = x_BTND[..., 2 * half :]
    return y_BTND


class _Rotary(torch.autograd.Function):
    """Backward is the rotation by the negative angle: only the tables are saved."""

    @staticmethod
    def forward(ctx: Any, x_BTND: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x_BTND, cos, sin, 1.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(grads[0], cos, sin, -1.0), None, None


def _rotary_torch(x_BTND: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    result: Tensor = _Rotary.apply(x_BTND, cos, sin)
    return result


IMPLEMENTATIONS = (
    Implementation("torch", _rotary_torch, always_supported),
    Implementation("reference", rotary_reference, always_supported),
)
