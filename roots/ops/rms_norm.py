"""Root-mean-square normalisation (Zhang, Sennrich, 2019) over the last dim, of a sum if so wanted.

    stream = x + residual                                  in the dtype of x
    y = stream / sqrt(mean(stream^2) + epsilon) * weight    statistics in fp32

With zero_centred the weight counts as 1 + weight, so that weight decay pulls towards 1 (Gemma).
Backward reads the stream and one number a row, and normalises again.
"""

from __future__ import annotations

from typing import Any, overload

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
from roots.ops.native import Kernel, native
from roots.ops.norm import (
    NormOptions,
    NormResult,
    add_residual,
    fake_forward,
    full_weight,
    keep_for_backward,
    norm_features,
    stream_gradients,
)


@overload
def rms_norm(
    x: Tensor,
    weight_H: Tensor,
    epsilon: float = ...,
    *,
    residual: None = ...,
    zero_centred: bool = ...,
    implementation: str = ...,
) -> Tensor: ...


@overload
def rms_norm(
    x: Tensor,
    weight_H: Tensor,
    epsilon: float = ...,
    *,
    residual: Tensor,
    zero_centred: bool = ...,
    implementation: str = ...,
) -> tuple[Tensor, Tensor]: ...


def rms_norm(
    x: Tensor,
    weight_H: Tensor,
    epsilon: float = 1e-5,
    *,
    residual: Tensor | None = None,
    zero_centred: bool = False,
    implementation: str = AUTO,
) -> Tensor | tuple[Tensor, Tensor]:
    """Normalise x [..., H] over its last dim; the result has its shape and dtype.

    residual: of the shape of x, added to it first; then the result is (y, x + residual).
    The mean square is computed in fp32 for 16-bit x; the gradient of the weight is summed in fp32
    and returned in its dtype.
    """
    request = request_for(x, *norm_features(residual))
    run = select("rms_norm", IMPLEMENTATIONS, request, implementation).run
    y, stream = run(x, residual, weight_H, NormOptions(epsilon, zero_centred))
    return y if residual is None else (y, stream)


def rms_norm_reference(
    x: Tensor, residual: Tensor | None, weight_H: Tensor, options: NormOptions
) -> NormResult:
    """The formula in plain torch, in fp32 (float64 for float64)."""
    wide = accumulation_dtype(x.dtype)
    stream = add_residual(x, residual)
    wide_stream = stream.to(wide)
    scale = (wide_stream.square().mean(-1, keepdim=True) + options.epsilon).rsqrt()
    y = wide_stream * scale * full_weight(weight_H.to(wide), options.zero_centred)
    return y.to(x.dtype), stream


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


def _rms_norm_torch(
    x: Tensor, residual: Tensor | None, weight_H: Tensor, options: NormOptions
) -> NormResult:
    """torch's kernel where it has one, which on a CPU it has not: composed there, it takes 3x."""
    stream = add_residual(x, residual)
    weight_H = full_weight(weight_H, options.zero_centred)
    if x.device.type == "cuda":
        return F.rms_norm(stream, weight_H.shape, weight_H, options.epsilon), stream
    return _RmsNorm.apply(stream, weight_H, options.epsilon), stream


def _rms_norm_native(
    ops: Any,
    x: Tensor,
    residual: Tensor | None,
    weight_H: Tensor,
    options: NormOptions,
) -> NormResult:
    y, stream, _ = ops.rms_norm_forward(x, residual, weight_H, *options)
    return y, stream


def _forward_fake(x: Tensor, residual: Tensor | None, *_: Any) -> tuple[Tensor, ...]:
    return fake_forward(x, residual, num_statistics=1)


def _backward_fake(dy: Tensor, dstream: Tensor | None, stream: Tensor, *_: Any) -> Any:
    dweight_H = stream.new_empty(stream.shape[-1], dtype=torch.float32)
    return stream.new_empty(stream.shape), dweight_H


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, residual, weight_H, _, ctx.zero_centred = inputs
    keep_for_backward(ctx, x, residual, weight_H, output)


def _backward(
    ops: Any, ctx: Any, grad_y: Tensor | None, grad_stream: Tensor | None, *_: Any
) -> tuple[Tensor | None, ...]:
    stream, weight_H, rstd = ctx.saved_tensors
    dx, dweight_H = ops.rms_norm_backward(
        *stream_gradients(ctx, stream, grad_y, grad_stream),
        stream,
        weight_H,
        rstd,
        ctx.zero_centred,
    )
    dresidual = dx if ctx.has_residual else None
    return dx, dresidual, dweight_H.to(weight_H.dtype), None, None


KERNELS = (
    Kernel("rms_norm_forward", _forward_fake, _setup_context, _backward),
    Kernel("rms_norm_backward", _backward_fake),
)

IMPLEMENTATIONS = (
    *native(KERNELS, _rms_norm_native),
    Implementation("torch", _rms_norm_torch, always_supported),
    Implementation("reference", rms_norm_reference, always_supported),
)
