"""The output head and its loss: vocabulary matmul and cross-entropy, a chunk of tokens at a time.

Legend: B micro-batch, T tokens, M tokens of one chunk, H hidden, V padded vocabulary, v this rank's
rows of it; "valid" columns are those below vocab_size.

    loss = sum(loss_weights_BT * cross_entropy(x W^T + b, label)) / B

The logits of one chunk exist at a time, in the dtype of x, and turn in place into their gradient;
the gradients of x and W are ready when the forward pass ends, and backward only scales them.
The softmax itself is roots.ops.cross_entropy, where label smoothing and z-loss are defined; sharing
it over the vocabulary costs one all-gather of four numbers a token (maximum, sum of exponentials,
logit of the label, sum of logits).

16-bit arithmetic: the gradient of W is summed over chunks in fp32. Row weights (mostly 1 / number
of tokens) are first brought to order 1 by a power of two, which backward undoes together with the
upstream gradient: nothing underflows in fp16, and the loss scale acts as ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from roots.ops.cross_entropy import (
    merge_statistics,
    softmax_gradient_,
    softmax_statistics,
    token_losses,
)
from roots.ops.dispatch import AUTO, accumulation_dtype
from roots.parallel.collectives import (
    all_gather_async,
    all_reduce_async,
    copy_to,
    gather_from,
    reduce_scatter_async,
)
from roots.parallel.mesh import Axis
from roots.parallel.process import all_gather_tensors

# Logits of one chunk: large enough that adding up dW by chunks costs little beside the matmuls; on
# a GPU, whose matmuls are fast against its memory, that takes more.
_CHUNK_BYTES = {"cpu": 128 * 2**20, "cuda": 512 * 2**20}
# Rows of the 16-bit product that are added to the fp32 gradient of W while still in cache.
_PRODUCT_ROWS = 4096
# Row stride of the logits in elements. An odd stride (50257) slows a CPU matmul by 30 percent.
_STRIDE_MULTIPLE = 64
# fp16: gradients of logits are held near 2**6, where probabilities of 1e-6 still have their full
# mantissa (the smallest normal number is 2**-14); sums over a chunk stay under 2**12 * max|x|.
_FP16_GRADIENT_BITS = 6
_FP16_SUM_BITS = 12


def linear_cross_entropy(
    x_BTH: Tensor,
    weight_vH: Tensor,
    labels_BT: Tensor,
    loss_weights_BT: Tensor,
    *,
    axis: Axis,
    vocab_size: int,
    bias_v: Tensor | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    sequence_dim: int | None = None,
    chunk_tokens: int | None = None,
    implementation: str = AUTO,
) -> Tensor:
    """The weighted cross-entropy of the head: an fp32 scalar, equal on every rank of `axis`.

    x_BTH, weight_vH and bias_v have one dtype; labels_BT int64 in [0, vocab_size), of no matter
    where the weight is zero; loss_weights_BT float32. Columns from vocab_size on take no part and
    get zero gradient. `label_smoothing`, `z_loss` and `implementation` are those of
    roots.ops.cross_entropy.
    With a `sequence_dim` x_BTH is this rank's slice along that dim (sequence parallelism).
    `chunk_tokens` bounds the tokens whose logits exist at once (default: 128 MiB of logits on a
    CPU, 512 on a GPU).

    Communication: forward, per chunk, an all-gather of the softmax statistics and (when x needs a
    gradient) an all-reduce of dx that overlaps the next matmul; backward none. With sequence_dim:
    forward an all-gather of x before all, and a reduce-scatter of dx, half the bytes of the
    all-reduces, behind all. Without gradients (torch.no_grad) nothing but the loss is computed.
    Backward runs once per forward.
    """
    rows = labels_BT.shape[0]
    gradients = torch.is_grad_enabled()
    head = _Head(
        axis=axis,
        valid=max(0, min(weight_vH.shape[0], vocab_size - axis.rank * weight_vH.shape[0])),
        vocab_size=vocab_size,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        chunk_tokens=_even_chunk(labels_BT.numel(), weight_vH, chunk_tokens),
        wants_x=gradients and x_BTH.requires_grad,
        wants_weight=gradients and weight_vH.requires_grad,
        sequence_dim=sequence_dim if axis.size > 1 else None,
        implementation=implementation,
    )
    row_weights = loss_weights_BT.reshape(-1).float() / rows
    labels_M = labels_BT.reshape(-1)
    return _LinearCrossEntropy.apply(x_BTH, weight_vH, bias_v, labels_M, row_weights, head)


def vocab_parallel_logits(
    x: Tensor, weight_vH: Tensor, axis: Axis, vocab_size: int, bias_v: Tensor | None = None
) -> Tensor:
    """x [..., H] -> logits [..., vocab_size], whole on every rank of `axis`; for generation.

    Communication: forward all-gather of the logits; backward all-reduce of dx.
    """
    logits = functional.linear(copy_to(x, axis), weight_vH, bias_v)
    return gather_from(logits, axis, -1)[..., :vocab_size]


@dataclass(frozen=True)
class _Head:
    """What the loss needs besides tensors; `valid` columns of this rank take part."""

    axis: Axis
    valid: int
    vocab_size: int
    label_smoothing: float
    z_loss: float
    chunk_tokens: int
    wants_x: bool
    wants_weight: bool
    sequence_dim: int | None
    implementation: str


@dataclass
class _Gradients:
    """Gradients before the upstream one: multiply by `x_unit` and `weight_unit` (powers of two)."""

    dx_MH: Tensor | None
    dweight_vH: Tensor | None
    dbias_v: Tensor | None
    x_unit: Tensor
    weight_unit: Tensor


class _LinearCrossEntropy(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_vH: Tensor,
        bias_v: Tensor | None,
        labels_M: Tensor,
        row_weights_M: Tensor,
        head: _Head,
    ) -> Tensor:
        dim = head.sequence_dim
        whole = x if dim is None else all_gather_async(x, head.axis, dim).wait()
        x_MH = whole.reshape(-1, x.shape[-1])
        loss, gradients = _forward(x_MH, weight_vH, bias_v, labels_M, row_weights_M, head)
        if dim is not None and gradients.dx_MH is not None:
            partial_dx = gradients.dx_MH.view(whole.shape)
            gradients.dx_MH = reduce_scatter_async(partial_dx, head.axis, dim).wait()
        ctx.gradients = gradients
        ctx.x_shape, ctx.weight_dtype = x.shape, weight_vH.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("linear_cross_entropy: backward was called twice on one forward")
        dx = dweight_vH = dbias_v = None
        if gradients.dx_MH is not None:
            dx = gradients.dx_MH.mul_(upstream * gradients.x_unit).view(ctx.x_shape)
        if gradients.dweight_vH is not None:
            dweight_vH = gradients.dweight_vH.mul_(upstream * gradients.weight_unit)
            dweight_vH = dweight_vH.to(ctx.weight_dtype)
        if gradients.dbias_v is not None:
            dbias_v = (gradients.dbias_v * (upstream * gradients.x_unit)).to(ctx.weight_dtype)
        return dx, dweight_vH, dbias_v, None, None, None


def _forward(
    x_MH: Tensor,
    weight_vH: Tensor,
    bias_v: Tensor | None,
    labels_M: Tensor,
    row_weights_M: Tensor,
    head: _Head,
) -> tuple[Tensor, _Gradients]:
    num_tokens, width = len(x_MH), len(weight_vH)
    chunk = head.chunk_tokens
    gradient_bits, sum_bits = _fp16_bits(x_MH.dtype, chunk)
    # The largest of row_weights * 2**shift lies in [2**(gradient_bits - 1), 2**gradient_bits).
    shift = gradient_bits - torch.frexp(row_weights_M.abs().amax()).exponent
    scaled_weights_M = torch.ldexp(row_weights_M, shift)
    losses_M = torch.empty_like(row_weights_M)
    gradients = _Gradients(
        dx_MH=torch.empty_like(x_MH) if head.wants_x else None,
        dweight_vH=_weight_gradient(weight_vH, num_tokens > chunk) if head.wants_weight else None,
        dbias_v=_bias_gradient(bias_v) if head.wants_weight else None,
        x_unit=torch.ldexp(torch.ones_like(row_weights_M[0]), -shift),
        weight_unit=torch.ldexp(torch.ones_like(row_weights_M[0]), sum_bits - shift),
    )
    stride = -(-width // _STRIDE_MULTIPLE) * _STRIDE_MULTIPLE
    buffer = x_MH.new_empty(min(chunk, num_tokens), stride)
    works = []
    for start in range(0, num_tokens, chunk):
        part = slice(start, min(start + chunk, num_tokens))
        logits_Mv = buffer[: part.stop - start, :width]
        torch.mm(x_MH[part], weight_vH.t(), out=logits_Mv)
        if bias_v is not None:
            logits_Mv += bias_v
        losses_M[part] = _token_losses(logits_Mv, labels_M[part], scaled_weights_M[part], head)
        # From here on logits_Mv holds the gradient of the loss by the logits.
        if gradients.dx_MH is not None:
            torch.mm(logits_Mv, weight_vH, out=gradients.dx_MH[part])
            if head.sequence_dim is None:
                works.append(all_reduce_async(gradients.dx_MH[part], head.axis))
        if gradients.dweight_vH is not None:
            x_part_MH = x_MH[part] * 2.0**-sum_bits if sum_bits else x_MH[part]
            _add_product(gradients.dweight_vH, logits_Mv.t(), x_part_MH, first=start == 0)
        if gradients.dbias_v is not None:
            gradients.dbias_v += logits_Mv.sum(0, dtype=gradients.dbias_v.dtype)
    for work in works:
        if work is not None:
            work.wait()
    return torch.dot(losses_M, row_weights_M), gradients


def _token_losses(logits_Mv: Tensor, labels_M: Tensor, weights_M: Tensor, head: _Head) -> Tensor:
    """Losses of the tokens, fp32; turns the logits into their gradient times weights_M in place."""
    first = head.axis.rank * logits_Mv.shape[1]
    valid_Mv = logits_Mv[:, : head.valid]
    whole = softmax_statistics(valid_Mv, labels_M, first, implementation=head.implementation)
    if head.axis.size > 1:
        whole = merge_statistics(torch.stack(all_gather_tensors(head.axis, torch.stack(whole))))
    if head.wants_x or head.wants_weight:
        softmax_gradient_(
            valid_Mv,
            whole.row_max_M,
            whole.sum_exp_M,
            labels_M,
            weights_M,
            first,
            vocab_size=head.vocab_size,
            label_smoothing=head.label_smoothing,
            z_loss=head.z_loss,
            implementation=head.implementation,
        )
        logits_Mv[:, head.valid :] = 0.0
    return token_losses(
        whole, head.vocab_size, label_smoothing=head.label_smoothing, z_loss=head.z_loss
    )


def _add_product(total_vH: Tensor, left_vM: Tensor, right_MH: Tensor, *, first: bool) -> None:
    """total_vH (+)= left_vM right_MH; 16-bit products are added to an fp32 total block by block."""
    if total_vH.dtype == left_vM.dtype:
        torch.addmm(total_vH, left_vM, right_MH, beta=0 if first else 1, out=total_vH)
        return
    for start in range(0, len(total_vH), _PRODUCT_ROWS):
        product = left_vM[start : start + _PRODUCT_ROWS].mm(right_MH)
        block = total_vH[start : start + _PRODUCT_ROWS]
        block.copy_(product) if first else block.add_(product)


def _weight_gradient(weight_vH: Tensor, several_chunks: bool) -> Tensor:
    dtype = torch.float32 if several_chunks else weight_vH.dtype
    return torch.empty_like(weight_vH, dtype=dtype, memory_format=torch.contiguous_format)


def _bias_gradient(bias_v: Tensor | None) -> Tensor | None:
    """Zeros in the dtype of accumulation, or None without a bias."""
    return (
        None if bias_v is None else torch.zeros_like(bias_v, dtype=accumulation_dtype(bias_v.dtype))
    )


def _fp16_bits(dtype: torch.dtype, chunk_tokens: int) -> tuple[int, int]:
    """Powers of two for fp16: one enlarges gradients of logits, the other divides x for dW."""
    if dtype != torch.float16:
        return 0, 0
    tokens_bits = max(1, chunk_tokens - 1).bit_length()
    return _FP16_GRADIENT_BITS, max(0, _FP16_GRADIENT_BITS + tokens_bits - _FP16_SUM_BITS)


def _even_chunk(num_tokens: int, weight_vH: Tensor, chunk_tokens: int | None) -> int:
    """Tokens a chunk, such that all chunks are of about equal size."""
    bytes_per_token = weight_vH.shape[0] * weight_vH.element_size()
    chunk_bytes = _CHUNK_BYTES[weight_vH.device.type]
    limit = max(1, chunk_bytes // bytes_per_token) if chunk_tokens is None else chunk_tokens
    num_chunks = -(-num_tokens // limit)
    return -(-num_tokens // num_chunks)
