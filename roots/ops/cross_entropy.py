"""Cross-entropy of logits and labels, in stages that work on a slice of the vocabulary.

    lse[m] = log(sum_v exp(z[m, v]))
    loss[m] = lse[m] - (1 - s) z[m, label[m]] - s / V sum_v z[m, v] + c lse[m]^2
    dloss[m] / dz[m, v] = softmax(z)[m, v] (1 + 2 c lse[m]) - (1 - s) [v == label[m]] - s / V

with the label smoothing s (Szegedy et al., "Rethinking the Inception Architecture", 2016, section
7) and the z-loss weight c (Chowdhery et al., "PaLM", 2022, section 5), which keeps lse near 0.

Stage 1, softmax_statistics: four numbers of every row of the local slice, in one read of it. A
caller with a sharded vocabulary merges those of its ranks (merge_statistics).
Stage 2, softmax_gradient_: the gradient, written over the logits; exponentials are computed again.

All arithmetic is in fp32; ROOTS' kernels convert 16-bit logits on the fly, and torch's operations
take rows in blocks that fit a core's cache, so no fp32 copy of the whole ever exists.

Legend: M tokens, V vocabulary, v the local slice [first, first + v) of it, R slices.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
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

# Elements of a block: a few rows of a large vocabulary, which stay in cache; on a GPU, enough work.
_CPU_BLOCK_ELEMENTS = 1 << 20
_GPU_BLOCK_ELEMENTS = 1 << 26


class SoftmaxStatistics(NamedTuple):
    """What is known of every row of a vocabulary slice; fp32 (float64 for float64 logits).

    row_max_M: largest logit; sum_exp_M: sum of exp(logit - row_max); picked_M: the logit of the
    label, 0 where the label lies outside of the slice; sum_logits_M: sum of the logits.
    """

    row_max_M: Tensor
    sum_exp_M: Tensor
    picked_M: Tensor
    sum_logits_M: Tensor


class _Form(NamedTuple):
    """The numbers of the formula; `first` is the vocabulary id of the slice's first column."""

    first: int
    vocab_size: int
    label_smoothing: float
    z_loss: float


def softmax_statistics(
    logits_Mv: Tensor, labels_M: Tensor, first: int = 0, *, implementation: str = AUTO
) -> SoftmaxStatistics:
    """Return the statistics of the slice that starts at vocabulary id `first`. No autograd.

    logits_Mv: rows may be strided (a slice without the padded columns); labels_M: int64. A slice
    of width 0, or of nothing but -inf, has maximum -inf and no exponentials.
    """
    run = select("cross_entropy", IMPLEMENTATIONS, request_for(logits_Mv), implementation).run
    return SoftmaxStatistics(*run(logits_Mv, labels_M, first))


def merge_statistics(statistics_R4M: Tensor) -> SoftmaxStatistics:
    """Return the statistics of the whole vocabulary from those of its slices, stacked."""
    maxima_RM, sums_RM, picked_RM, totals_RM = statistics_R4M.unbind(1)
    row_max_M = maxima_RM.amax(0)
    sum_exp_M = (sums_RM * (maxima_RM - row_max_M).exp()).sum(0)
    return SoftmaxStatistics(row_max_M, sum_exp_M, picked_RM.sum(0), totals_RM.sum(0))


def token_losses(
    whole: SoftmaxStatistics, vocab_size: int, *, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> Tensor:
    """Return loss_M from the statistics of the whole vocabulary."""
    log_sum_M = whole.sum_exp_M.log()
    # In this order, since a confident row has picked == row_max and a sum near 1.
    losses_M = log_sum_M + (whole.row_max_M - whole.picked_M)
    if label_smoothing:
        mean_M = whole.sum_logits_M / vocab_size
        losses_M = losses_M + label_smoothing * (whole.picked_M - mean_M)
    if z_loss:
        losses_M = losses_M + z_loss * (log_sum_M + whole.row_max_M).square()
    return losses_M


def softmax_gradient_(
    logits_Mv: Tensor,
    row_max_M: Tensor,
    sum_exp_M: Tensor,
    labels_M: Tensor,
    row_weights_M: Tensor,
    first: int = 0,
    *,
    vocab_size: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    implementation: str = AUTO,
) -> Tensor:
    """Write row_weight * dloss / dlogits over logits_Mv and return it.

    row_max_M, sum_exp_M: of the whole vocabulary, fp32, as are row_weights_M; vocab_size: its size
    (default: that of the slice). A row of weight 0 gets zeros, whatever its logits. The columns of
    a row must lie side by side.
    """
    end = first + logits_Mv.shape[1]
    form = _Form(first, end if vocab_size is None else vocab_size, label_smoothing, z_loss)
    request = request_for(logits_Mv)
    run = select("cross_entropy", GRADIENT_IMPLEMENTATIONS, request, implementation).run
    whole = (row_max_M, sum_exp_M)
    result: Tensor = run(logits_Mv, whole, labels_M, row_weights_M, form, True)
    return result


def cross_entropy(
    logits_MV: Tensor,
    labels_M: Tensor,
    *,
    ignored_label: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    implementation: str = AUTO,
) -> Tensor:
    """Return loss_M in fp32 of logits_MV with autograd; 0 where the label is `ignored_label`.

    Saves the logits themselves for backward, which allocates nothing but their gradient. In
    training use the sharded, chunked loss of roots.parallel, which stores no logits of a whole
    batch. Labels (int64) must lie in [0, V) or be ignored.
    """
    form = _Form(0, logits_MV.shape[1], label_smoothing, z_loss)
    result: Tensor = _CrossEntropy.apply(logits_MV, labels_M, ignored_label, form, implementation)
    return result


def cross_entropy_reference(
    logits_MV: Tensor,
    labels_M: Tensor,
    ignored_label: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Tensor:
    """The formula in plain torch, in fp32 (float64 for float64)."""
    wide_MV = logits_MV.to(accumulation_dtype(logits_MV.dtype))
    ignored_M = labels_M == ignored_label
    picked_M = wide_MV.gather(1, labels_M.masked_fill(ignored_M, 0)[:, None])[:, 0]
    lse_M = wide_MV.logsumexp(dim=1)
    losses_M = lse_M - picked_M + z_loss * lse_M.square()
    losses_M = losses_M + label_smoothing * (picked_M - wide_MV.mean(dim=1))
    return losses_M.masked_fill(ignored_M, 0.0)


class _CrossEntropy(torch.autograd.Function):
    """Both stages on one slice that is the whole vocabulary."""

    @staticmethod
    def forward(
        ctx: Any,
        logits_MV: Tensor,
        labels_M: Tensor,
        ignored_label: int,
        form: _Form,
        implementation: str,
    ) -> Tensor:
        whole = softmax_statistics(logits_MV, labels_M, implementation=implementation)
        ignored_M = labels_M == ignored_label
        ctx.form, ctx.implementation = form, implementation
        ctx.save_for_backward(logits_MV, labels_M, ignored_M, whole.row_max_M, whole.sum_exp_M)
        losses_M = token_losses(
            whole, form.vocab_size, label_smoothing=form.label_smoothing, z_loss=form.z_loss
        )
        return losses_M.masked_fill(ignored_M, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        logits_MV, labels_M, ignored_M, row_max_M, sum_exp_M = ctx.saved_tensors
        request = request_for(logits_MV)
        run = select("cross_entropy", GRADIENT_IMPLEMENTATIONS, request, ctx.implementation).run
        weights_M = grads[0].masked_fill(ignored_M, 0.0)
        whole = (row_max_M, sum_exp_M)
        gradient_MV = run(logits_MV, whole, labels_M, weights_M, ctx.form, False)
        return gradient_MV, None, None, None, None


def _statistics_native(
    ops: Any, logits_Mv: Tensor, labels_M: Tensor, first: int
) -> tuple[Tensor, ...]:
    result: tuple[Tensor, ...] = ops.softmax_statistics(logits_Mv, labels_M, first)
    return result


def _gradient_native(
    ops: Any,
    logits_Mv: Tensor,
    whole: tuple[Tensor, Tensor],
    labels_M: Tensor,
    row_weights_M: Tensor,
    *how: Any,
) -> Tensor:
    form, in_place = how
    operands = (logits_Mv, *whole, labels_M, row_weights_M, *form)
    if in_place:
        ops.softmax_gradient_(*operands)
        return logits_Mv
    result: Tensor = ops.softmax_gradient(*operands)
    return result


def _fake_statistics(logits: Tensor, labels: Tensor, first: int) -> tuple[Tensor, ...]:
    return tuple(logits.new_empty(logits.shape[0], dtype=torch.float32) for _ in range(4))


def _fake_gradient_(*operands: Any) -> None:
    return None


def _fake_gradient(logits: Tensor, *operands: Any) -> Tensor:
    return logits.new_empty(logits.shape)


KERNELS = (
    Kernel("softmax_statistics", _fake_statistics),
    Kernel("softmax_gradient_", _fake_gradient_),
    Kernel("softmax_gradient", _fake_gradient),
)


def _inside(labels_M: Tensor, first: int, width: int) -> tuple[Tensor, Tensor]:
    """Return (labels as columns of the slice [M, 1], whether they lie in it [M, 1])."""
    columns_M1 = (labels_M - first)[:, None]
    inside_M1 = (columns_M1 >= 0) & (columns_M1 < width)
    return columns_M1.clamp(0, max(width - 1, 0)), inside_M1


def _picked(logits_Mv: Tensor, labels_M: Tensor, first: int) -> Tensor:
    columns_M1, inside_M1 = _inside(labels_M, first, logits_Mv.shape[1])
    picked_M1 = logits_Mv.gather(1, columns_M1).to(accumulation_dtype(logits_Mv.dtype))
    return picked_M1.masked_fill(~inside_M1, 0.0)[:, 0]


def _empty_statistics(logits_Mv: Tensor) -> SoftmaxStatistics:
    """The statistics of a slice of no columns: a rank that holds only padding."""
    wide = accumulation_dtype(logits_Mv.dtype)
    zeros_M = torch.zeros(logits_Mv.shape[0], dtype=wide, device=logits_Mv.device)
    lowest_M = torch.full_like(zeros_M, -torch.inf)
    return SoftmaxStatistics(lowest_M, zeros_M, zeros_M.clone(), zeros_M.clone())


def _blocks(logits_Mv: Tensor) -> range:
    """Starts of the row blocks; the step is their height."""
    elements = _CPU_BLOCK_ELEMENTS if logits_Mv.device.type == "cpu" else _GPU_BLOCK_ELEMENTS
    height = max(1, elements // max(logits_Mv.shape[1], 1))
    return range(0, logits_Mv.shape[0], height)


def _scratch(logits_Mv: Tensor, height: int) -> Tensor:
    wide = accumulation_dtype(logits_Mv.dtype)
    rows = min(height, logits_Mv.shape[0])
    return torch.empty(rows, logits_Mv.shape[1], dtype=wide, device=logits_Mv.device)


def _statistics_torch(logits_Mv: Tensor, labels_M: Tensor, first: int) -> SoftmaxStatistics:
    """torch's softmax is the fastest way to exponentials on a CPU; its largest value is 1 / sum."""
    if logits_Mv.shape[1] == 0:
        return _empty_statistics(logits_Mv)
    picked_M = _picked(logits_Mv, labels_M, first)
    row_max_M, sum_exp_M, sum_logits_M = (torch.empty_like(picked_M) for _ in range(3))
    blocks = _blocks(logits_Mv)
    scratch = _scratch(logits_Mv, blocks.step)
    for start in blocks:
        part = logits_Mv[start : start + blocks.step]
        rows = slice(start, start + part.shape[0])
        row_max_M[rows] = part.amax(dim=1)
        target = scratch[: part.shape[0]].copy_(part)
        sum_logits_M[rows] = target.sum(dim=1)
        torch.softmax(target, dim=1, out=target)
        torch.reciprocal(target.amax(dim=1), out=sum_exp_M[rows])
    sum_exp_M.masked_fill_(row_max_M == -torch.inf, 0.0)
    return SoftmaxStatistics(row_max_M, sum_exp_M, picked_M, sum_logits_M)


def _gradient_torch(
    logits_Mv: Tensor,
    whole: tuple[Tensor, Tensor],
    labels_M: Tensor,
    row_weights_M: Tensor,
    form: _Form,
    in_place: bool,
) -> Tensor:
    """Scales exponentials row by row and sets the entry of the label, in blocks of rows."""
    gradient_Mv = logits_Mv if in_place else torch.empty_like(logits_Mv)
    if logits_Mv.shape[1] == 0:
        return gradient_Mv
    weights_M1 = row_weights_M.to(whole[0].dtype)[:, None]
    row_max_M1, sum_exp_M1 = whole[0][:, None], whole[1][:, None]
    z_slope_M1 = 2 * form.z_loss * (row_max_M1 + sum_exp_M1.log())
    factor_M1 = weights_M1 * (1 + z_slope_M1) / sum_exp_M1
    share_M1 = weights_M1 * (form.label_smoothing / form.vocab_size)
    columns_M1, inside_M1 = _inside(labels_M, form.first, logits_Mv.shape[1])
    # softmax - 1 = expm1(logit - lse), which keeps its digits where the softmax is near 1.
    picked_M1 = _picked(logits_Mv, labels_M, form.first)[:, None]
    minus_one_M1 = torch.expm1(picked_M1 - row_max_M1 - sum_exp_M1.log())
    slope_M1 = minus_one_M1 + z_slope_M1 * (1 + minus_one_M1) + form.label_smoothing
    label_M1 = weights_M1 * slope_M1 - share_M1
    blocks = _blocks(logits_Mv)
    scratch = (
        None if in_place and logits_Mv.dtype == whole[0].dtype else _scratch(logits_Mv, blocks.step)
    )
    for start in blocks:
        part = logits_Mv[start : start + blocks.step]
        rows = slice(start, start + part.shape[0])
        target = part if scratch is None else scratch[: part.shape[0]].copy_(part)
        target.sub_(row_max_M1[rows]).exp_().mul_(factor_M1[rows])
        if form.label_smoothing:
            target.sub_(share_M1[rows])
        others_M1 = target.gather(1, columns_M1[rows])
        entry_M1 = torch.where(inside_M1[rows], label_M1[rows], others_M1)
        target.scatter_(1, columns_M1[rows], entry_M1)
        target.masked_fill_(weights_M1[rows] == 0, 0.0)
        if target is not part:
            gradient_Mv[rows] = target
    return gradient_Mv


def _statistics_reference(logits_Mv: Tensor, labels_M: Tensor, first: int) -> SoftmaxStatistics:
    """The formulas in plain torch on an fp32 copy of the whole."""
    if logits_Mv.shape[1] == 0:
        return _empty_statistics(logits_Mv)
    wide_Mv = logits_Mv.to(accumulation_dtype(logits_Mv.dtype))
    row_max_M = wide_Mv.max(dim=1).values
    shift_M = row_max_M.masked_fill(row_max_M == -torch.inf, 0.0)
    sum_exp_M = (wide_Mv - shift_M[:, None]).exp().sum(dim=1)
    picked_M = _picked(logits_Mv, labels_M, first)
    return SoftmaxStatistics(row_max_M, sum_exp_M, picked_M, wide_Mv.sum(dim=1))


def _gradient_reference(
    logits_Mv: Tensor,
    whole: tuple[Tensor, Tensor],
    labels_M: Tensor,
    row_weights_M: Tensor,
    form: _Form,
    in_place: bool,
) -> Tensor:
    """The formulas in plain torch on an fp32 copy of the whole."""
    row_max_M1, sum_exp_M1 = whole[0][:, None], whole[1][:, None]
    wide_Mv = logits_Mv.to(accumulation_dtype(logits_Mv.dtype))
    softmax_Mv = (wide_Mv - row_max_M1).exp() / sum_exp_M1
    lse_M1 = row_max_M1 + sum_exp_M1.log()
    columns_v = torch.arange(form.first, form.first + logits_Mv.shape[1], device=logits_Mv.device)
    target_Mv = (labels_M[:, None] == columns_v).to(softmax_Mv.dtype)
    smoothing = form.label_smoothing
    target_Mv = (1 - smoothing) * target_Mv + smoothing / form.vocab_size
    slope_Mv = softmax_Mv * (1 + 2 * form.z_loss * lse_M1) - target_Mv
    weights_M1 = row_weights_M[:, None]
    gradient_Mv = (slope_Mv * weights_M1).masked_fill(weights_M1 == 0, 0.0)
    return logits_Mv.copy_(gradient_Mv) if in_place else gradient_Mv.to(logits_Mv.dtype)


IMPLEMENTATIONS = (
    *native(KERNELS, _statistics_native),
    Implementation("torch", _statistics_torch, always_supported),
    Implementation("reference", _statistics_reference, always_supported),
)
GRADIENT_IMPLEMENTATIONS = (
    *native(KERNELS, _gradient_native),
    Implementation("torch", _gradient_torch, always_supported),
    Implementation("reference", _gradient_reference, always_supported),
)
