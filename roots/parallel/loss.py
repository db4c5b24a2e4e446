"""The output head and its loss: vocabulary matmul and cross-entropy, a chunk of tokens at a time.

Legend: B micro-batch, T tokens, M tokens of one chunk, H hidden, V padded vocabulary, v this rank's
rows of it; "valid" columns are those below vocab_size.

    loss = sum(loss_weights_BT * (logsumexp(x W^T) - (x W^T)[label])) / B

The logits of one chunk exist at a time, in the dtype of x, and turn in place into their gradient;
the gradients of x and W are ready when the forward pass ends, and backward only scales them.
Sharing the softmax over the vocabulary costs one all-gather of two numbers a token: each rank
normalises over its own columns, and its probabilities shrink by exp(local - global logsumexp).

16-bit arithmetic: softmax in fp32, a few rows at a time; the entry of the label is computed apart,
as w * expm1(logit - logsumexp), since 1 - p would cancel; the gradient of W is summed over chunks
in fp32. Row weights (mostly 1 / number of tokens) are first brought to order 1 by a power of two,
which backward undoes together with the upstream gradient: nothing underflows in fp16, and the loss
scale acts as ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from roots.parallel.collectives import all_reduce_async, copy_to, gather_from
from roots.parallel.mesh import Axis
from roots.parallel.process import all_gather_tensors

# Logits of one chunk: large enough that adding up dW by chunks costs little beside the matmuls; on
# a GPU, whose matmuls are fast against its memory, that takes more.
_CHUNK_BYTES = {"cpu": 128 * 2**20, "cuda": 512 * 2**20}
# Elements of one fp32 softmax block: fits a CPU's second-level cache; on a GPU, enough to fill it.
_BLOCK_ELEMENTS = {"cpu": 2**19, "cuda": 2**24}
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
    chunk_tokens: int | None = None,
) -> Tensor:
    """The weighted cross-entropy of the head: an fp32 scalar, equal on every rank of `axis`.

    x_BTH and weight_vH have one dtype; labels_BT int64 in [0, vocab_size), of no matter where the
    weight is zero; loss_weights_BT float32. Columns from vocab_size on take no part and get zero
    gradient. `chunk_tokens` bounds the tokens whose logits exist at once (default: 128 MiB of
    logits on a CPU, 512 on a GPU).

    Communication: forward, per chunk, an all-gather of the softmax statistics and (when x needs a
    gradient) an all-reduce of dx that overlaps the next matmul; backward none. Without gradients
    (torch.no_grad) nothing but the loss is computed. Backward runs once per forward.
    """
    rows = labels_BT.shape[0]
    gradients = torch.is_grad_enabled()
    head = _Head(
        axis=axis,
        valid=max(0, min(weight_vH.shape[0], vocab_size - axis.rank * weight_vH.shape[0])),
        chunk_tokens=_even_chunk(labels_BT.numel(), weight_vH, chunk_tokens),
        wants_x=gradients and x_BTH.requires_grad,
        wants_weight=gradients and weight_vH.requires_grad,
    )
    row_weights = loss_weights_BT.reshape(-1).float() / rows
    return _LinearCrossEntropy.apply(x_BTH, weight_vH, labels_BT.reshape(-1), row_weights, head)


def vocab_parallel_logits(x: Tensor, weight_vH: Tensor, axis: Axis, vocab_size: int) -> Tensor:
    """x [..., H] -> logits [..., vocab_size], whole on every rank of `axis`; for generation.

    Communication: forward all-gather of the logits; backward all-reduce of dx.
    """
    logits = torch.matmul(copy_to(x, axis), weight_vH.t())
    return gather_from(logits, axis, -1)[..., :vocab_size]


@dataclass(frozen=True)
class _Head:
    """What the loss needs besides tensors; `valid` columns of this rank take part."""

    axis: Axis
    valid: int
    chunk_tokens: int
    wants_x: bool
    wants_weight: bool


@dataclass
class _Gradients:
    """Gradients before the upstream one: multiply by `x_unit` and `weight_unit` (powers of two)."""

    dx_MH: Tensor | None
    dweight_vH: Tensor | None
    x_unit: Tensor
    weight_unit: Tensor


class _LinearCrossEntropy(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_vH: Tensor, labels_M: Tensor, row_weights_M: Tensor, head: _Head
    ) -> Tensor:
        x_MH = x.reshape(-1, x.shape[-1])
        loss, gradients = _forward(x_MH, weight_vH, labels_M, row_weights_M, head)
        ctx.gradients = gradients
        ctx.x_shape, ctx.weight_dtype = x.shape, weight_vH.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("linear_cross_entropy: backward was called twice on one forward")
        dx = dweight_vH = None
        if gradients.dx_MH is not None:
            dx = gradients.dx_MH.mul_(upstream * gradients.x_unit).view(ctx.x_shape)
        if gradients.dweight_vH is not None:
            dweight_vH = gradients.dweight_vH.mul_(upstream * gradients.weight_unit)
            dweight_vH = dweight_vH.to(ctx.weight_dtype)
        return dx, dweight_vH, None, None, None


def _forward(
    x_MH: Tensor, weight_vH: Tensor, labels_M: Tensor, row_weights_M: Tensor, head: _Head
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
        losses_M[part] = _token_losses(logits_Mv, labels_M[part], scaled_weights_M[part], head)
        # From here on logits_Mv holds the gradient of the loss by the logits.
        if gradients.dx_MH is not None:
            torch.mm(logits_Mv, weight_vH, out=gradients.dx_MH[part])
            works.append(all_reduce_async(gradients.dx_MH[part], head.axis))
        if gradients.dweight_vH is not None:
            x_part_MH = (
                torch.ldexp(x_MH[part], -x_MH.new_tensor(sum_bits)) if sum_bits else x_MH[part]
            )
            _add_product(gradients.dweight_vH, logits_Mv.t(), x_part_MH, first=start == 0)
    for work in works:
        if work is not None:
            work.wait()
    return torch.dot(losses_M, row_weights_M), gradients


def _token_losses(logits_Mv: Tensor, labels_M: Tensor, weights_M: Tensor, head: _Head) -> Tensor:
    """Losses of the tokens, fp32; turns the logits into weights_M * (softmax - onehot) in place."""
    width = logits_Mv.shape[1]
    valid_Mv = logits_Mv[:, : head.valid]
    local_M = labels_M - head.axis.rank * width
    is_local_M = (local_M >= 0) & (local_M < head.valid)
    column_M1 = local_M.masked_fill(~is_local_M, 0).unsqueeze(1)
    picked_M = logits_Mv.gather(1, column_M1).squeeze(1).float().masked_fill(~is_local_M, 0.0)
    wants_gradient = head.wants_x or head.wants_weight
    local_sum_M = _softmax_(valid_Mv, weights_M, wants_gradient)
    total_M = local_sum_M
    if head.axis.size > 1:
        statistics = all_gather_tensors(head.axis, torch.stack([local_sum_M, picked_M]))
        stacked_R2M = torch.stack(statistics)
        total_M = torch.logsumexp(stacked_R2M[:, 0], dim=0)
        picked_M = stacked_R2M[:, 1].sum(0)
    if wants_gradient:
        if head.axis.size > 1:
            valid_Mv.mul_((local_sum_M - total_M).exp().unsqueeze(1))
        logits_Mv[:, head.valid :] = 0.0
        label_M = (weights_M * torch.expm1(picked_M - total_M)).to(logits_Mv.dtype)
        # Indexed, not scattered: scatter_ copies a strided matrix whole, 13 percent of the time.
        row_M, column_M = torch.arange(len(label_M), device=label_M.device), column_M1.squeeze(1)
        kept_M = logits_Mv[row_M, column_M]
        logits_Mv[row_M, column_M] = torch.where(is_local_M, label_M, kept_M)
    return total_M - picked_M


def _softmax_(logits_Mv: Tensor, weights_M: Tensor, write: bool) -> Tensor:
    """Logsumexp of every row, fp32; with `write` the logits become weights_M * softmax in place.

    One pass of exponentials; fp32 inside, over blocks of rows that stay in cache.
    """
    num_rows, width = logits_Mv.shape
    sums_M = torch.full_like(weights_M, -torch.inf)
    if width == 0:
        return sums_M
    step = max(1, _BLOCK_ELEMENTS[logits_Mv.device.type] // width)
    scratch = torch.empty(min(step, num_rows), width, dtype=torch.float32, device=logits_Mv.device)
    for start in range(0, num_rows, step):
        block = logits_Mv[start : start + step]
        weights = weights_M[start : start + step].unsqueeze(1)
        in_place = write and block.dtype == torch.float32
        exponentials = block if in_place else scratch[: len(block)].copy_(block)
        largest = exponentials.amax(1, keepdim=True)
        total = exponentials.sub_(largest).exp_().sum(1, keepdim=True)
        sums_M[start : start + step] = (largest + total.log()).squeeze(1)
        if write:
            exponentials.mul_(weights / total)
            if not in_place:
                block.copy_(exponentials)
    return sums_M


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
