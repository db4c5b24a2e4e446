"""What layer_norm and rms_norm share: the residual added before, and the weight's two forms."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class NormOptions(NamedTuple):
    """What an implementation is told besides the tensors."""

    epsilon: float
    zero_centred: bool


# What an implementation returns: y, and the stream where a residual was added.
NormResult = tuple[Tensor, Tensor | None]


def add_residual(x: Tensor, residual: Tensor | None) -> Tensor:
    """The stream that is normalised: x + residual, in their dtype."""
    return x if residual is None else x + residual


def full_weight(weight_H: Tensor, zero_centred: bool) -> Tensor:
    """What the normalised stream is multiplied by."""
    return 1.0 + weight_H if zero_centred else weight_H


def norm_features(residual: Tensor | None) -> list[str]:
    """The features of a call, by which implementations are chosen."""
    return [] if residual is None else ["residual"]


def fake_forward(x: Tensor, residual: Tensor | None, num_statistics: int) -> tuple[Tensor, ...]:
    """y, the stream (empty without residual) and the statistics of every row."""
    statistics = (
        x.new_empty(x.numel() // x.shape[-1], dtype=torch.float32) for _ in range(num_statistics)
    )
    stream = x.new_empty(0) if residual is None else x.new_empty(x.shape)
    return (x.new_empty(x.shape), stream, *statistics)


def keep_for_backward(
    ctx: Any, x: Tensor, residual: Tensor | None, weight_H: Tensor, output: tuple[Tensor, ...]
) -> None:
    """Kept are the stream, the weight and the statistics; y is not."""
    _, stream, *statistics = output
    ctx.save_for_backward(x if residual is None else stream, weight_H, *statistics)
    ctx.has_residual = residual is not None
    ctx.mark_non_differentiable(*statistics)
    ctx.set_materialize_grads(False)


def stream_gradients(
    ctx: Any, stream: Tensor, grad_y: Tensor | None, grad_stream: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """dy, and the gradient of the stream from elsewhere if there was a residual."""
    grad_y = torch.zeros_like(stream) if grad_y is None else grad_y
    return grad_y, grad_stream if ctx.has_residual else None
