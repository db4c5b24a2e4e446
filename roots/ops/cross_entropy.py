"""Cross-entropy of logits and labels, in stages that work on a slice of the vocabulary.

    loss[m] = log(sum_v exp(z[m, v])) - z[m, label[m]]
    dloss[m] / dz[m, v] = softmax(z)[m, v] - [v == label[m]]

Stage 1, softmax_statistics: (row maximum, sum of exponentials, picked logit) of the local slice. A
caller with a sharded vocabulary combines them over its ranks (maximum; sums rescaled to it; sum).
Stage 2, softmax_gradient_: the gradient, written over the logits.

Rows are taken in blocks that fit a core's cache, through an fp32 scratch of one block for 16-bit
logits, so no fp32 copy of the whole ever exists. With overwrite=True stage 1 leaves the softmax of
the slice where the logits were, and stage 2 only scales it: every exponential is computed once.
torch's in-place softmax is the fastest way to them on a CPU (maximum, exponential and sum while a
row is in cache), and its largest value is 1 / sum.

Legend: M tokens, V vocabulary, v the local slice [first, first + v) of it.
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

# Elements of a block: a few rows of a large vocabulary, which stay in cache; on a GPU, enough work.
_CPU_BLOCK_ELEMENTS = 1 << 20
_GPU_BLOCK_ELEMENTS = 1 << 26


class SoftmaxStatistics(NamedTuple):
    """What is known of every row of a vocabulary slice; fp32 (float64 for float64 logits).

    row_max_M: largest logit; sum_exp_M: sum of exp(logit - row_max); picked_M: the logit of the
    label, 0 where the label lies outside of the slice.
    """

    row_max_M: Tensor
    sum_exp_M: Tensor
    picked_M: Tensor


def softmax_statistics(
    logits_Mv: Tensor,
    labels_M: Tensor,
    first: int = 0,
    *,
    overwrite: bool = False,
    implementation: str = AUTO,
) -> SoftmaxStatistics:
    """Return (row_max_M, sum_exp_M, picked_M) of the slice that starts at vocabulary id `first`.

    overwrite: leave softmax(logits_Mv) over the slice in the storage of logits_Mv, for
    softmax_gradient_(..., local=these statistics). Rows may be strided (a slice without the padded
    columns). A slice of width 0 has maximum -inf and sum 0. No autograd.
    """
    run = select("cross_entropy", IMPLEMENTATIONS, request_for(logits_Mv), implementation).run
    result: SoftmaxStatistics = run(logits_Mv, labels_M, first, overwrite)
    return result


def softmax_gradient_(
    logits_Mv: Tensor,
    row_max_M: Tensor,
    sum_exp_M: Tensor,
    labels_M: Tensor,
    row_weights_M: Tensor,
    first: int = 0,
    *,
    local: SoftmaxStatistics | None = None,
    implementation: str = AUTO,
) -> Tensor:
    """Write (softmax - onehot(label)) * row_weight over logits_Mv and return it.

    row_max_M, sum_exp_M: of the whole vocabulary, fp32. `local` says that logits_Mv was overwritten
    by softmax_statistics(overwrite=True) and gives what that returned for this slice.
    """
    request = request_for(logits_Mv)
    run = select("cross_entropy", GRADIENT_IMPLEMENTATIONS, request, implementation).run
    whole = (row_max_M, sum_exp_M)
    result: Tensor = run(logits_Mv, whole, labels_M, row_weights_M, first, local)
    return result


def cross_entropy(
    logits_MV: Tensor, labels_M: Tensor, *, ignored_label: int = -100, implementation: str = AUTO
) -> Tensor:
    """Return loss_M in fp32 of logits_MV with autograd; 0 where the label is `ignored_label`.

    Saves a copy of the logits in their dtype, which backward turns into their gradient, so that one
    graph can be run backward once. In training use the sharded, chunked loss of roots.parallel,
    which stores no logits of a whole batch. Labels must lie in [0, V) or be ignored.
    """
    result: Tensor = _CrossEntropy.apply(logits_MV, labels_M, ignored_label, implementation)
    return result


def cross_entropy_reference(
    logits_MV: Tensor, labels_M: Tensor, ignored_label: int = -100
) -> Tensor:
    """The formula in plain torch, in fp32 (float64 for float64)."""
    wide_MV = logits_MV.to(accumulation_dtype(logits_MV.dtype))
    counted_M = labels_M != ignored_label
    picked_M = wide_MV.gather(1, (labels_M * counted_M)[:, None])[:, 0]
    return (wide_MV.logsumexp(dim=1) - picked_M) * counted_M


def merge_statistics(local: SoftmaxStatistics, row_max_M: Tensor) -> Tensor:
    """Return the local sum of exponentials with respect to the maximum over all slices."""
    return local.sum_exp_M * (local.row_max_M - row_max_M).exp()


class _CrossEntropy(torch.autograd.Function):
    """Both stages on one slice that is the whole vocabulary."""

    @staticmethod
    def forward(
        ctx: Any, logits_MV: Tensor, labels_M: Tensor, ignored_label: int, implementation: str
    ) -> Tensor:
        keep = ctx.needs_input_grad[0]
        # Backward finds the softmax in this copy; without a gradient nothing is written.
        values_MV = logits_MV.clone() if keep else logits_MV
        local = softmax_statistics(
            values_MV, labels_M, overwrite=keep, implementation=implementation
        )
        counted_M = labels_M != ignored_label
        ctx.implementation = implementation
        if keep:
            ctx.save_for_backward(values_MV, labels_M, counted_M, *local)
        return (local.row_max_M + local.sum_exp_M.log() - local.picked_M) * counted_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        values_MV, labels_M, counted_M, *statistics = ctx.saved_tensors
        local = SoftmaxStatistics(*statistics)
        # In place in a saved tensor: its version tells autograd, so a second backward over the
        # same graph raises instead of taking the gradient for the softmax.
        gradient = softmax_gradient_(
            values_MV,
            local.row_max_M,
            local.sum_exp_M,
            labels_M,
            grads[0] * counted_M,
            local=local,
            implementation=ctx.implementation,
        )
        return gradient, None, None, None


def _inside(labels_M: Tensor, first: int, width: int) -> tuple[Tensor, Tensor]:
    """Return (labels as columns of the slice [M, 1], whether they lie in it [M, 1])."""
    columns_M1 = (labels_M - first)[:, None]
    inside_M1 = (columns_M1 >= 0) & (columns_M1 < width)
    return columns_M1.clamp(0, max(width - 1, 0)), inside_M1


def _picked(logits_Mv: Tensor, labels_M: Tensor, first: int) -> Tensor:
    columns_M1, inside_M1 = _inside(labels_M, first, logits_Mv.shape[1])
    picked_M1 = logits_Mv.gather(1, columns_M1).to(accumulation_dtype(logits_Mv.dtype))
    return picked_M1.masked_fill(~inside_M1, 0.0)[:, 0]


def _label_gradient(
    logits_Mv: Tensor,
    whole: tuple[Tensor, Tensor],
    labels_M: Tensor,
    weights_M: Tensor,
    first: int,
    local: SoftmaxStatistics | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (columns [M, 1], gradient at the label [M, 1], whether the label is in the slice).

    softmax - 1 = expm1(logit - logsumexp), which keeps its digits where the softmax is near 1.
    """
    columns_M1, inside_M1 = _inside(labels_M, first, logits_Mv.shape[1])
    picked_M = _picked(logits_Mv, labels_M, first) if local is None else local.picked_M
    gradient_M = weights_M * torch.expm1(picked_M - whole[0] - whole[1].log())
    return columns_M1, gradient_M[:, None], inside_M1


def _empty_statistics(logits_Mv: Tensor) -> SoftmaxStatistics:
    """The statistics of a slice of no columns: a rank that holds only padding."""
    wide = accumulation_dtype(logits_Mv.dtype)
    zeros_M = torch.zeros(logits_Mv.shape[0], dtype=wide, device=logits_Mv.device)
    return SoftmaxStatistics(torch.full_like(zeros_M, -torch.inf), zeros_M, zeros_M.clone())


def _blocks(logits_Mv: Tensor) -> range:
    """Starts of the row blocks; the step is their height."""
    elements = _CPU_BLOCK_ELEMENTS if logits_Mv.device.type == "cpu" else _GPU_BLOCK_ELEMENTS
    height = max(1, elements // max(logits_Mv.shape[1], 1))
    return range(0, logits_Mv.shape[0], height)


def _scratch(logits_Mv: Tensor, height: int) -> Tensor:
    wide = accumulation_dtype(logits_Mv.dtype)
    rows = min(height, logits_Mv.shape[0])
    return torch.empty(rows, logits_Mv.shape[1], dtype=wide, device=logits_Mv.device)


def _statistics_torch(
    logits_Mv: Tensor, labels_M: Tensor, first: int, overwrite: bool
) -> SoftmaxStatistics:
    if logits_Mv.shape[1] == 0:
        return _empty_statistics(logits_Mv)
    picked_M = _picked(logits_Mv, labels_M, first)
    row_max_M, sum_exp_M = torch.empty_like(picked_M), torch.empty_like(picked_M)
    blocks = _blocks(logits_Mv)
    direct = overwrite and logits_Mv.dtype == picked_M.dtype
    scratch = None if direct else _scratch(logits_Mv, blocks.step)
    for start in blocks:
        part = logits_Mv[start : start + blocks.step]
        rows = slice(start, start + part.shape[0])
        row_max_M[rows] = part.amax(dim=1)
        target = part
        if scratch is not None:
            target = scratch[: part.shape[0]].copy_(part)
        torch.softmax(target, dim=1, out=target)
        # exp(0) / sum is the largest value of the row.
        torch.reciprocal(target.amax(dim=1), out=sum_exp_M[rows])
        if overwrite and target is not part:
            part.copy_(target)
    return SoftmaxStatistics(row_max_M, sum_exp_M, picked_M)


def _gradient_torch(
    logits_Mv: Tensor,
    whole: tuple[Tensor, Tensor],
    labels_M: Tensor,
    row_weights_M: Tensor,
    first: int,
    local: SoftmaxStatistics | None,
) -> Tensor:
    if logits_Mv.shape[1] == 0:
        return logits_Mv
    row_max_M, sum_exp_M = whole
    wide = accumulation_dtype(logits_Mv.dtype)
    weights_M = row_weights_M.to(wide)
    local_sum_M = row_max_M.new_ones(()) if local is None else merge_statistics(local, row_max_M)
    factor_M1 = (weights_M * (local_sum_M / sum_exp_M))[:, None]
    row_max_M1 = row_max_M[:, None]
    columns_M1, gradient_M1, inside_M1 = _label_gradient(
        logits_Mv, whole, labels_M, weights_M, first, local
    )
    blocks = _blocks(logits_Mv)
    scratch = None if logits_Mv.dtype == wide else _scratch(logits_Mv, blocks.step)
    for start in blocks:
        part = logits_Mv[start : start + blocks.step]
        rows = slice(start, start + part.shape[0])
        target = part if scratch is None else scratch[: part.shape[0]].copy_(part)
        if local is None:
            target.sub_(row_max_M1[rows]).exp_()
        target.mul_(factor_M1[rows])
        others_M1 = target.gather(1, columns_M1[rows])
        entry_M1 = torch.where(inside_M1[rows], gradient_M1[rows], others_M1)
        target.scatter_(1, columns_M1[rows], entry_M1)
        if target is not part:
            part.copy_(target)
    return logits_Mv


def _statistics_reference(
    logits_Mv: Tensor, labels_M: Tensor, first: int, overwrite: bool
) -> SoftmaxStatistics:
    """The formulas in plain torch on an fp32 copy of the whole."""
    if logits_Mv.shape[1] == 0:
        return _empty_statistics(logits_Mv)
    wide_Mv = logits_Mv.to(accumulation_dtype(logits_Mv.dtype))
    picked_M = _picked(logits_Mv, labels_M, first)
    row_max_M = wide_Mv.max(dim=1).values
    sum_exp_M = (wide_Mv - row_max_M[:, None]).exp().sum(dim=1)
    if overwrite:
        logits_Mv.copy_((wide_Mv - row_max_M[:, None]).exp() / sum_exp_M[:, None])
    return SoftmaxStatistics(row_max_M, sum_exp_M, picked_M)


def _gradient_reference(
    logits_Mv: Tensor,
    whole: tuple[Tensor, Tensor],
    labels_M: Tensor,
    row_weights_M: Tensor,
    first: int,
    local: SoftmaxStatistics | None,
) -> Tensor:
    """The formulas in plain torch on an fp32 copy of the whole."""
    row_max_M, sum_exp_M = whole
    wide_Mv = logits_Mv.to(accumulation_dtype(logits_Mv.dtype))
    if local is None:
        softmax_Mv = (wide_Mv - row_max_M[:, None]).exp() / sum_exp_M[:, None]
    else:
        share_M = merge_statistics(local, row_max_M) / sum_exp_M
        softmax_Mv = wide_Mv * share_M[:, None]
    columns_v = torch.arange(first, first + logits_Mv.shape[1], device=logits_Mv.device)
    onehot_Mv = (labels_M[:, None] == columns_v).to(softmax_Mv.dtype)
    return logits_Mv.copy_((softmax_Mv - onehot_Mv) * row_weights_M[:, None])


IMPLEMENTATIONS = (
    Implementation("torch", _statistics_torch, always_supported),
    Implementation("reference", _statistics_reference, always_supported),
)
GRADIENT_IMPLEMENTATIONS = (
    Implementation("torch", _gradient_torch, always_supported),
    Implementation("reference", _gradient_reference, always_supported),
)
