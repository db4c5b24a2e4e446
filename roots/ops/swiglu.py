"""Gated linear unit with the swish gate (Shazeer, "GLU Variants Improve Transformer", 2020).

y = gate * sigmoid(gate) * up
"""

from __future__ import annotations

import torch
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


def _swiglu_torch(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


IMPLEMENTATIONS = (
    Implementation("torch", _swiglu_torch, always_supported),
    Implementation("reference", swiglu_reference, always_supported),
)
