"""Layer normalisation (Ba, Kiros, Hinton, 2016) over the last dim.

y = (x - mean(x)) / sqrt(var(x) + epsilon) * weight + bias        var biased, statistics in fp32
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from roots.ops.dispatch import (
    AUTO,
    Implementation,
    accumulation_dtype,
    always_supported,
    request_for,
    select,
)


def layer_norm(
    x: Tensor,
    weight_H: Tensor,
    bias_H: Tensor | None = None,
    epsilon: float = 1e-5,
    *,
    implementation: str = AUTO,
) -> Tensor:
    """Normalise x [..., H] over its last dim; the result has its shape and dtype.

    Mean and variance are computed in fp32 for 16-bit x; the gradients of weight and bias are summed
    in fp32 and returned in the dtype of the weight.
    """
    run = select("layer_norm", IMPLEMENTATIONS, request_for(x), implementation).run
    result: Tensor = run(x, weight_H, bias_H, epsilon)
    return result


def layer_norm_reference(
    x: Tensor, weight_H: Tensor, bias_H: Tensor | None, epsilon: float
) -> Tensor:
    """The formula in plain torch, in fp32 (float64 for float64)."""
    wide = accumulation_dtype(x.dtype)
    centred = x.to(wide) - x.to(wide).mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    y = centred * (variance + epsilon).rsqrt() * weight_H.to(wide)
    if bias_H is not None:
        y = y + bias_H.to(wide)
    return y.to(x.dtype)


def _layer_norm_torch(x: Tensor, weight_H: Tensor, bias_H: Tensor | None, epsilon: float) -> Tensor:
    return F.layer_norm(x, weight_H.shape, weight_H, bias_H, epsilon)


IMPLEMENTATIONS = (
    Implementation("torch", _layer_norm_torch, always_supported),
    Implementation("reference", layer_norm_reference, always_supported),
)
