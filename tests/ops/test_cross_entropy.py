"""cross_entropy and its stages, on whole vocabularies and on slices.

Legend: M tokens, V vocabulary, v a slice of it.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from roots.ops import cross_entropy, softmax_gradient_, softmax_statistics
from roots.ops.cross_entropy import (
    SoftmaxStatistics,
    cross_entropy_reference,
    merge_statistics,
)
from tests.ops.accuracy import (
    all_dtypes,
    all_implementations,
    assert_as_accurate,
    assert_close_as_baseline,
    both_strides,
    random_inputs,
)

# The attribute `cross_entropy` of roots.ops is the function, hence by import.
MODULE = importlib.import_module("roots.ops.cross_entropy")
SIZES = [(5, 123), (1, 40), (33, 257), (2, 5000)]


def labels(tokens: int, vocabulary: int) -> Tensor:
    return torch.randint(0, vocabulary, (tokens,), generator=torch.Generator().manual_seed(1))


@all_dtypes
@all_implementations
@both_strides
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_cross_entropy_is_as_accurate_as_the_baseline(
    dtype: torch.dtype, implementation: str, strided: bool, size: tuple[int, int], scale: float
) -> None:
    labels_M = labels(*size)

    def op(logits_MV: Tensor) -> Tensor:
        return cross_entropy(logits_MV, labels_M, implementation=implementation)

    def baseline(logits_MV: Tensor) -> Tensor:
        return -torch.log_softmax(logits_MV, dim=1).gather(1, labels_M[:, None])[:, 0]

    inputs = [scale * random_inputs(size)[0]]
    assert_as_accurate(op, baseline, inputs, dtype, strided=strided)


def run_slices(
    logits_MV: Tensor,
    labels_M: Tensor,
    weights_M: Tensor,
    cuts: list[int],
    overwrite: bool,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor]:
    """What ranks with the slices between `cuts` do together: (losses, gradient), [M] and [M, V]."""
    bounds = list(zip([0, *cuts], [*cuts, logits_MV.shape[1]], strict=True))
    slices = [logits_MV[:, start:stop].clone() for start, stop in bounds]
    statistics = [
        softmax_statistics(
            part, labels_M, start, overwrite=overwrite, implementation=implementation
        )
        for part, (start, _) in zip(slices, bounds, strict=True)
    ]
    row_max_M = torch.stack([each.row_max_M for each in statistics]).amax(0)
    sum_exp_M = torch.stack([merge_statistics(each, row_max_M) for each in statistics]).sum(0)
    picked_M = torch.stack([each.picked_M for each in statistics]).sum(0)
    for part, local, (start, _) in zip(slices, statistics, bounds, strict=True):
        written = softmax_gradient_(
            part,
            row_max_M,
            sum_exp_M,
            labels_M,
            weights_M,
            start,
            local=local if overwrite else None,
            implementation=implementation,
        )
        assert written.data_ptr() == part.data_ptr()
    return row_max_M + sum_exp_M.log() - picked_M, torch.cat(slices, dim=1)


def formula(logits_MV: Tensor, labels_M: Tensor, weights_M: Tensor) -> tuple[Tensor, Tensor]:
    """Losses and weighted gradient in plain torch of the dtype of the logits."""
    log_softmax_MV = torch.log_softmax(logits_MV, dim=1)
    onehot_MV = torch.nn.functional.one_hot(labels_M, logits_MV.shape[1]).to(logits_MV.dtype)
    losses_M = -log_softmax_MV.gather(1, labels_M[:, None])[:, 0]
    gradient_MV = (log_softmax_MV.exp() - onehot_MV) * weights_M[:, None].to(logits_MV.dtype)
    return losses_M, gradient_MV


@all_dtypes
@all_implementations
@pytest.mark.parametrize("overwrite", [True, False], ids=["overwrite", "recompute"])
@pytest.mark.parametrize("cuts", [[], [60], [1, 50, 122], [0, 40, 40]], ids=str)
def test_slices_together_are_as_accurate_as_the_baseline(
    dtype: torch.dtype, implementation: str, overwrite: bool, cuts: list[int]
) -> None:
    logits_MV = 4.0 * random_inputs((17, 123))[0].to(dtype)
    labels_M, weights_M = labels(17, 123), random_inputs((17,), seed=5)[0].abs().float()
    gold = formula(logits_MV.double(), labels_M, weights_M.double())
    plain = formula(logits_MV, labels_M, weights_M)
    ours = run_slices(logits_MV, labels_M, weights_M, cuts, overwrite, implementation)
    assert ours[0].dtype == torch.float32
    for name, index in (("losses", 0), ("gradient", 1)):
        assert_close_as_baseline(name, ours[index], plain[index], gold[index], dtype)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    tokens=st.integers(0, 5),
    vocabulary=st.integers(1, 40),
    overwrite=st.booleans(),
    implementation=st.sampled_from(["torch", "reference"]),
    data=st.data(),
)
def test_any_cut_of_the_vocabulary_gives_the_same(
    tokens: int, vocabulary: int, overwrite: bool, implementation: str, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, vocabulary), max_size=4)))
    (logits_MV,) = random_inputs((tokens, vocabulary))
    labels_M, weights_M = labels(tokens, vocabulary), torch.rand(tokens).double()
    ours = run_slices(logits_MV, labels_M, weights_M, cuts, overwrite, implementation)
    for left, right in zip(ours, formula(logits_MV, labels_M, weights_M), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


@all_dtypes
@pytest.mark.parametrize("overwrite", [True, False])
def test_blocks_do_not_show(
    dtype: torch.dtype, overwrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits_MV, labels_M = random_inputs((10, 40))[0].to(dtype), labels(10, 40)
    weights_M = torch.ones(10)
    whole = run_slices(logits_MV, labels_M, weights_M, [], overwrite)
    monkeypatch.setattr(MODULE, "_CPU_BLOCK_ELEMENTS", 3 * 40)
    blocked = run_slices(logits_MV, labels_M, weights_M, [], overwrite)
    assert all(torch.equal(left, right) for left, right in zip(whole, blocked, strict=True))


@all_dtypes
@pytest.mark.parametrize("overwrite", [True, False])
def test_padded_columns_take_no_part_and_are_not_touched(
    dtype: torch.dtype, overwrite: bool
) -> None:
    """A slice of the columns below the vocabulary size, with rows as wide as the padded one."""
    padded_MV = random_inputs((6, 48))[0].to(dtype)
    padded_MV[:, 41:] = 1000.0
    valid_Mv, labels_M, weights_M = padded_MV[:, :41], labels(6, 41), torch.ones(6)
    expected = run_slices(valid_Mv, labels_M, weights_M, [], overwrite)
    local = softmax_statistics(valid_Mv, labels_M, overwrite=overwrite)
    softmax_gradient_(
        valid_Mv,
        local.row_max_M,
        local.sum_exp_M,
        labels_M,
        weights_M,
        local=local if overwrite else None,
    )
    assert torch.equal(valid_Mv, expected[1])
    assert (padded_MV[:, 41:] == 1000.0).all()


class _LargestWideTensor(TorchDispatchMode):
    """Remembers the largest float32 tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.dtype == torch.float32:
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("overwrite", [True, False])
def test_no_fp32_copy_of_16_bit_logits_is_made(
    overwrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "_CPU_BLOCK_ELEMENTS", 4 * 100)
    logits_MV, labels_M = random_inputs((64, 100))[0].bfloat16(), labels(64, 100)
    with _LargestWideTensor() as mode:
        local = softmax_statistics(logits_MV, labels_M, overwrite=overwrite)
        softmax_gradient_(
            logits_MV,
            local.row_max_M,
            local.sum_exp_M,
            labels_M,
            torch.ones(64),
            local=local if overwrite else None,
        )
    assert mode.elements == 4 * 100


@all_implementations
@pytest.mark.parametrize("overwrite", [True, False])
def test_statistics_are_what_they_say(implementation: str, overwrite: bool) -> None:
    (logits_Mv,) = random_inputs((4, 10))
    labels_M = torch.tensor([0, 25, 20, 29])
    values_Mv = logits_Mv.clone()
    local = softmax_statistics(
        values_Mv, labels_M, 20, overwrite=overwrite, implementation=implementation
    )
    shifted_Mv = logits_Mv - logits_Mv.amax(1, keepdim=True)
    assert torch.equal(local.row_max_M, logits_Mv.amax(1))
    torch.testing.assert_close(local.sum_exp_M, shifted_Mv.exp().sum(1), rtol=1e-12, atol=0)
    expected_M = torch.stack([torch.zeros(()), logits_Mv[1, 5], logits_Mv[2, 0], logits_Mv[3, 9]])
    assert torch.equal(local.picked_M, expected_M)
    if overwrite:
        torch.testing.assert_close(values_Mv, logits_Mv.softmax(1), rtol=1e-12, atol=0)
    else:
        assert torch.equal(values_Mv, logits_Mv)


@pytest.mark.parametrize("overwrite", [True, False])
def test_gradient_of_a_sure_label_keeps_its_digits(overwrite: bool) -> None:
    """softmax - 1 is 1e-2 to 3e-4 here, less than the spacing of bf16 numbers near 1."""
    logits_MV = torch.zeros(3, 8, dtype=torch.bfloat16)
    logits_MV[:, 2] = torch.tensor([6.5, 8.0, 10.0])
    labels_M, weights_M = torch.full((3,), 2), torch.ones(3)
    gold_MV = formula(logits_MV.double(), labels_M, weights_M.double())[1]
    gradient_MV = run_slices(logits_MV, labels_M, weights_M, [4], overwrite)[1]
    torch.testing.assert_close(gradient_MV.double(), gold_MV, rtol=2.0**-7, atol=0)


@all_dtypes
@all_implementations
def test_non_finite_logits_are_not_hidden(dtype: torch.dtype, implementation: str) -> None:
    """An overflow must reach the loss, where the loss scaler sees it."""
    for bad in (torch.inf, torch.nan):
        logits_MV = random_inputs((3, 9))[0].to(dtype)
        logits_MV[1, 4] = bad
        losses_M = cross_entropy(logits_MV, labels(3, 9), implementation=implementation)
        assert losses_M.isfinite().tolist() == [True, False, True]


@all_implementations
def test_ignored_labels_have_no_loss_and_no_gradient(implementation: str) -> None:
    logits_MV = random_inputs((4, 9))[0].requires_grad_()
    labels_M = torch.tensor([3, -100, 8, -100])
    losses_M = cross_entropy(logits_MV, labels_M, implementation=implementation)
    expected_M = torch.nn.functional.cross_entropy(logits_MV, labels_M, reduction="none")
    torch.testing.assert_close(losses_M, expected_M, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(losses_M.sum(), logits_MV)
    (expected,) = torch.autograd.grad(expected_M.sum(), logits_MV)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)
    assert not gradient[1].any()
    own = torch.tensor([3, 0, 8, 0])
    assert cross_entropy(logits_MV, own, ignored_label=0).detach()[1] == 0


def test_logits_are_left_alone_and_backward_runs_once() -> None:
    logits_MV = random_inputs((4, 9))[0].requires_grad_()
    copy = logits_MV.detach().clone()
    loss = cross_entropy(logits_MV, labels(4, 9)).sum()
    loss.backward(retain_graph=True)
    assert torch.equal(logits_MV, copy)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    with torch.no_grad():
        torch.testing.assert_close(cross_entropy(logits_MV, labels(4, 9)).sum(), loss)
    assert torch.equal(logits_MV, copy)


@all_implementations
def test_gradients_against_finite_differences(implementation: str) -> None:
    labels_M = torch.tensor([3, -100, 8])
    (logits_MV,) = random_inputs((3, 9))
    # Backward overwrites what forward saved, so gradcheck must run forward anew for every row.
    assert torch.autograd.gradcheck(
        lambda x: cross_entropy_reference(x, labels_M), logits_MV.requires_grad_()
    )
    weights_M = random_inputs((3,))[0]
    ours, expected = (
        torch.autograd.grad((losses_M * weights_M).sum(), logits_MV)[0]
        for losses_M in (
            cross_entropy(logits_MV, labels_M, implementation=implementation),
            cross_entropy_reference(logits_MV, labels_M),
        )
    )
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_a_slice_of_padding_only_adds_nothing() -> None:
    local = softmax_statistics(torch.zeros(3, 0), torch.tensor([1, 2, 3]), 7, overwrite=True)
    assert isinstance(local, SoftmaxStatistics)
    assert local.row_max_M.tolist() == [-torch.inf] * 3
    assert local.sum_exp_M.tolist() == local.picked_M.tolist() == [0.0] * 3
    assert merge_statistics(local, torch.ones(3)).tolist() == [0.0] * 3
