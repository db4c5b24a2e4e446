"""Layer normalisation (Ba, Kiros, Hinton, 2016) over the last dim, of a sum of two if so wanted.

    stream = x + residual                                       in the dtype of x
    y = (stream - mean) / sqrt(var + epsilon) * weight + bias    var biased, statistics in fp32

With zero_centred the weight counts as 1 + weight, so that weight decay pulls towards 1. Backward
reads the stream and two numbers a row, and normalises again.
"""

from __future__ import annotations

from typing import Any, overload

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
def layer_norm(
    x: Tensor,
    weight_H: Tensor,
    bias_H: Tensor | None = ...,
    epsilon: float = ...,
    *,
    residual: None = ...,
    zero_centred: bool = ...,
    implementation: str = ...,
) -> Tensor: ...


@overload
def layer_norm(
    x: Tensor,
    weight_H: Tensor,
    bias_H: Tensor | None = ...,
    epsilon: float = ...,
    *,
    residual: Tensor,
    zero_centred: bool = ...,
    implementation: str = ...,
) -> tuple[Tensor, Tensor]: ...


def layer_norm(
    x: Tensor,
    weight_H: Tensor,
    bias_H: Tensor | None = None,
    epsilon: float = 1e-5,
    *,
    residual: Tensor | None = None,
    zero_centred: bool = False,
    implementation: str = AUTO,
) -> Tensor | tuple[Tensor, Tensor]:
    """Normalise x [..., H] over its last dim; the result has its shape and dtype.

    residual: of the shape of x, added to it first; then the result is (y, x + residual).
    Mean and variance are computed in fp32 for 16-bit x; the gradients of weight and bias are summed
    in fp32 and returned in the dtype of the weight. ("torch" on a CPU sums them in 16 bits.)
    """
    request = request_for(x, *norm_features(residual))
    run = select("layer_norm", IMPLEMENTATIONS, request, implementation).run
    y, stream = run(x, residual, weight_H, bias_H, NormOptions(epsilon, zero_centred))
    return y if residual is None else (y, stream)


def layer_norm_reference(
    x: Tensor,
    residual: Tensor | None,
    weight_H: Tensor,
    bias_H: Tensor | None,
    options: NormOptions,
) -> NormResult:
    """The formula in plain torch, in fp32 (float64 for float64)."""
    wide = accumulation_dtype(x.dtype)
    stream = add_residual(x, residual)
    centred = stream.to(wide) - stream.to(wide).mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    y = (
        centred
        * (variance + options.epsilon).rsqrt()
        * full_weight(weight_H.to(wide), options.zero_centred)
    )
    if bias_H is not None:
        y = y + bias_H.to(wide)
    return y.to(x.dtype), stream


def _layer_norm_torch(
    x: Tensor,
    residual: Tensor | None,
    weight_H: Tensor,
    bias_H: Tensor | None,
    options: NormOptions,
) -> NormResult:
    stream = add_residual(x, residual)
    weight_H = full_weight(weight_H, options.zero_centred)
    return F.layer_norm(stream, weight_H.shape, weight_H, bias_H, options.epsilon), stream


def _layer_norm_native(
    ops: Any,
    x: Tensor,
    residual: Tensor | None,
    weight_H: Tensor,
    bias_H: Tensor | None,
    options: NormOptions,
) -> NormResult:
    y, stream, _, _ = ops.layer_norm_forward(x, residual, weight_H, bias_H, *options)
    return y, stream


def _forward_fake(x: Tensor, residual: Tensor | None, *_: Any) -> tuple[Tensor, ...]:
    return fake_forward(x, residual, num_statistics=2)


def _backward_fake(dy: Tensor, dstream: Tensor | None, stream: Tensor, *rest: Any) -> Any:
    size = stream.shape[-1]
    dweight_H = stream.new_empty(size, dtype=torch.float32)
    has_bias = rest[-1]
    return stream.new_empty(stream.shape), dweight_H, dweight_H.new_empty(size if has_bias else 0)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, residual, weight_H, bias_H, _, ctx.zero_centred = inputs
    keep_for_backward(ctx, x, residual, weight_H, output)
    ctx.bias_dtype = None if bias_H is None else bias_H.dtype


def _backward(
    ops: Any, ctx: Any, grad_y: Tensor | None, grad_stream: Tensor | None, *_: Any
) -> tuple[Tensor | None, ...]:
    stream, weight_H, mean, rstd = ctx.saved_tensors
    has_bias = ctx.bias_dtype is not None
    dx, dweight_H, dbias_H = ops.layer_norm_backward(
        *stream_gradients(ctx, stream, grad_y, grad_stream),
        stream,
        weight_H,
        mean,
        rstd,
        ctx.zero_centred,
        has_bias,
    )
    dbias_H = dbias_H.to(ctx.bias_dtype) if has_bias else None
    dresidual = dx if ctx.has_residual else None
    return dx, dresidual, dweight_H.to(weight_H.dtype), dbias_H, None, None


KERNELS = (
    Kernel("layer_norm_forward", _forward_fake, _setup_context, _backward),
    Kernel("layer_norm_backward", _backward_fake),
)

IMPLEMENTATIONS = (
    *native(KERNELS, _layer_norm_native),
    Implementation("torch", _layer_norm_torch, always_supported),
    Implementation("reference", layer_norm_reference, always_supported),
)
