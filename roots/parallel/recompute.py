"""Activation recompute: keep a block's inputs and compute its inside again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor
from torch.utils.checkpoint import checkpoint

Result = TypeVar("Result")


def recompute(function: Callable[..., Result], *tensors: Tensor | None) -> Result:
    """function(*tensors), whose activations are recomputed when gradients are asked for.

    No state of random generators is kept, because dropout masks in ROOTS are functions of keys that
    travel with the batch; hence the second run equals the first. Parameters reached through
    `function` get their gradients, and inputs without gradient (token ids) are fine.
    """
    return checkpoint(function, *tensors, use_reentrant=False, preserve_rng_state=False)
