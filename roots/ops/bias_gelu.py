"""Gaussian error linear unit (Hendrycks, Gimpel, 2016), with the bias of the layer before it.

    "none":  y = z * Phi(z)                                          z = x + bias
    "tanh":  y = 0.5 z (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3)))

Legend: F inner width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
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
from roots.ops.native import Kernel, native


def bias_gelu(
    x: Tensor,
    bias_F: Tensor | None = None,
    approximate: str = "none",
    *,
    implementation: str = AUTO,
) -> Tensor:
    """Return gelu(x + bias) of x [..., F]; approximate is "none" (exact) or "tanh".

    ROOTS' kernel keeps only x and the bias for backward. Raises RootsError for another form and
    for a bias of another size.
    """
    if approximate not in ("none", "tanh"):
        raise RootsError(
            problem("approximate", approximate, "is no form of gelu", "use none or tanh")
        )
    if bias_F is not None and bias_F.shape != x.shape[-1:]:
        rule = f"must have the size of the last dim of x {list(x.shape)}"
        raise RootsError(problem("bias", list(bias_F.shape), rule, "pass one number a column"))
    run = select("bias_gelu", IMPLEMENTATIONS, request_for(x), implementation).run
    result: Tensor = run(x, bias_F, approximate)
    return result


def bias_gelu_reference(
    x: Tensor, bias_F: Tensor | None = None, approximate: str = "none"
) -> Tensor:
    """The formula in plain torch, in fp32 (float64 for float64)."""
    wide = accumulation_dtype(x.dtype)
    z = x.to(wide) if bias_F is None else x.to(wide) + bias_F.to(wide)
    if approximate == "tanh":
        inner = math.sqrt(2.0 / math.pi) * (z + 0.044715 * z.pow(3))
        y = 0.5 * z * (1.0 + torch.tanh(inner))
    else:
        y = 0.5 * z * (1.0 + torch.erf(z * math.sqrt(0.5)))
    return y.to(x.dtype)


def _bias_gelu_torch(x: Tensor, bias_F: Tensor | None, approximate: str) -> Tensor:
    """torch's kernel. On a CPU its exact form in fp32 is oneDNN's, with an error of up to 1e-6
    (the formula's own: 4e-7); at a fifth of the formula's time that is the better bargain.
    """
    return F.gelu(x if bias_F is None else x + bias_F, approximate=approximate)


def _bias_gelu_kernel(ops: Any, x: Tensor, bias_F: Tensor | None, approximate: str) -> Tensor:
    result: Tensor = ops.bias_gelu_forward(x, bias_F, approximate == "tanh")
    return result


def _forward_fake(x: Tensor, bias: Tensor | None, tanh: bool) -> Tensor:
    return x.new_empty(x.shape)


def _backward_fake(dy: Tensor, x: Tensor, bias: Tensor | None, tanh: bool) -> tuple[Tensor, Tensor]:
    columns = 0 if bias is None else x.shape[-1]
    return x.new_empty(x.shape), x.new_empty(columns, dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bias, ctx.tanh = inputs
    ctx.save_for_backward(x, bias)


def _backward(ops: Any, ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor | None, None]:
    x, bias = ctx.saved_tensors
    dx, dbias = ops.bias_gelu_backward(dy, x, bias, ctx.tanh)
    return dx, None if bias is None else dbias.to(bias.dtype), None


KERNELS = (
    Kernel("bias_gelu_forward", _forward_fake, _setup_context, _backward),
    Kernel("bias_gelu_backward", _backward_fake),
)

IMPLEMENTATIONS = (
    *native(KERNELS, _bias_gelu_kernel),
    Implementation("torch", _bias_gelu_torch, always_supported),
    Implementation("reference", bias_gelu_reference, always_supported),
)
