"""Bias, dropout and residual addition at the end of a branch of a transformer block.

    y = residual + dropout(x + bias)

The mask is that of roots.ops.dropout for the same (key, site, token, element).
Legend: B rows, T tokens, H hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from roots.ops.dispatch import (
    AUTO,
    Implementation,
    Request,
    always_supported,
    request_for,
    select,
)
from roots.ops.dropout import (
    KERNELS,
    dropout_reference,
    dropout_wanted,
    keep_mask,
    keep_scale,
    token_keys,
)
from roots.ops.native import native


def bias_dropout_add(
    x_BTH: Tensor,
    bias_H: Tensor | None,
    residual_BTH: Tensor,
    rate: float,
    keys_B: Tensor | None,
    site: str,
    *,
    positions_T: Tensor | None = None,
    implementation: str = AUTO,
) -> Tensor:
    """Return residual_BTH + dropout(x_BTH + bias_H), [B, T, H].

    bias_H None: no bias. Rate 0 needs no keys. keys_B, site, positions_T and the errors are those
    of roots.ops.dropout. ROOTS' kernel saves nothing but a key a token for backward; in plain torch
    it is one byte an element. All operands have one dtype.
    """
    keys_B = keys_B if dropout_wanted(rate, keys_B) else None
    features = ["dropout"] if keys_B is not None else []
    features += ["bias"] if bias_H is not None else []
    request = request_for(x_BTH, *features)
    run = select("bias_dropout_add", IMPLEMENTATIONS, request, implementation).run
    if keys_B is None:
        rate = 0.0
    result: Tensor = run(x_BTH, bias_H, residual_BTH, (rate, keys_B, site, positions_T))
    return result


def bias_dropout_add_reference(
    x_BTH: Tensor,
    bias_H: Tensor | None,
    residual_BTH: Tensor,
    drop: tuple[float, Tensor | None, str, Tensor | None],
) -> Tensor:
    """Plain torch, one rounding at the end. `drop` is (rate, keys_B or None, site, positions_T)."""
    rate, keys_B, site, positions_T = drop
    wide = torch.promote_types(x_BTH.dtype, torch.float32)
    y_BTH = x_BTH.to(wide) if bias_H is None else x_BTH.to(wide) + bias_H.to(wide)
    if keys_B is not None:
        y_BTH = dropout_reference(y_BTH, rate, keys_B, site, positions_T)
    return (residual_BTH.to(wide) + y_BTH).to(residual_BTH.dtype)


class _BiasDropoutAdd(torch.autograd.Function):
    """y = residual + (x + bias) * keep * scale, with one temporary in forward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, residual: Tensor, keep: Tensor, scale: float
    ) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.scale = scale
        ctx.bias_dtype = None if bias is None else bias.dtype
        y = x * keep if bias is None else (x + bias).mul_(keep)
        return torch.add(residual, y, alpha=scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor, None, None]:
        (keep,) = ctx.saved_tensors
        grad_x = (grads[0] * keep).mul_(ctx.scale)
        grad_bias = None
        if ctx.bias_dtype is not None and ctx.needs_input_grad[1]:
            grad_bias = grad_x.sum(dim=tuple(range(grad_x.dim() - 1))).to(ctx.bias_dtype)
        return grad_x, grad_bias, grads[0], None, None


def _bias_dropout_add_torch(
    x_BTH: Tensor,
    bias_H: Tensor | None,
    residual_BTH: Tensor,
    drop: tuple[float, Tensor | None, str, Tensor | None],
) -> Tensor:
    rate, keys_B, site, positions_T = drop
    if keys_B is None:
        y_BTH = x_BTH if bias_H is None else x_BTH + bias_H
        return residual_BTH + y_BTH
    keep_BTH = keep_mask(
        token_keys(keys_B, site, x_BTH.shape[1], positions_T), x_BTH.shape[2], rate
    )
    result: Tensor = _BiasDropoutAdd.apply(x_BTH, bias_H, residual_BTH, keep_BTH, keep_scale(rate))
    return result


def _bias_dropout_add_kernel(
    ops: Any,
    x_BTH: Tensor,
    bias_H: Tensor | None,
    residual_BTH: Tensor,
    drop: tuple[float, Tensor | None, str, Tensor | None],
) -> Tensor:
    rate, keys_B, site, positions_T = drop
    keys_BT = None
    if keys_B is not None:
        keys_BT = token_keys(keys_B, site, x_BTH.shape[1], positions_T)
    result: Tensor = ops.bias_dropout_add_forward(x_BTH, bias_H, residual_BTH, keys_BT, rate)
    return result


def _reluctance(request: Request) -> str:
    if request.features:
        return ""
    return "without bias and dropout it is a single addition, which torch does as fast."


IMPLEMENTATIONS = (
    *native(KERNELS, _bias_dropout_add_kernel, by_name_only=_reluctance),
    Implementation("torch", _bias_dropout_add_torch, always_supported),
    Implementation("reference", bias_dropout_add_reference, always_supported),
)
