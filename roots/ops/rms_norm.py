"""Root-mean-square normalisation (Zhang, Sennrich, 2019) over the last dim.

y = x / sqrt(mean(x^2) + epsilon) * weight        statistics in fp32
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


def _rms_norm_torch(x: Tensor, weight_H: Tensor, epsilon: float) -> Tensor:
    return F.rms_norm(x, weight_H.shape, weight_H, epsilon)


IMPLEMENTATIONS = (
    Implementation("torch", _rms_norm_torch, always_supported),
    Implementation("reference", rms_norm_reference, always_supported),
)
