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

from roots.ops import cross_entropy, softmax_gradient_, softmax_statistics
from roots.ops.cross_entropy import (
    SoftmaxStatistics,
    cross_entropy_reference,
    merge_statistics,
    token_losses,
)
from tests.ops.accuracy import (
    all_dtypes,
    all_implementations,
    assert_as_accurate,
    assert_close_as_baseline,
    both_strides,
    plain_implementations,
    random_inputs,
)

# The attribute `cross_entropy` of roots.ops is the function, hence by import.
MODULE = importlib.import_module("roots.ops.cross_entropy")
SHAPES = [(5, 123), (1, 40), (33, 257), (2, 5000), (3, 20011)]

plain_and_smoothed = pytest.mark.parametrize(
    "extras",
    [{}, {"label_smoothing": 0.1}, {"z_loss": 0.01}, {"label_smoothing": 0.3, "z_loss": 0.001}],
    ids=["plain", "smoothed", "z_loss", "both"],
)
Extras = dict[str, float]


def labels(tokens: int, vocabulary: int, device: str = "cpu") -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, vocabulary, (tokens,), generator=generator).to(device)


def losses_of(
    logits_MV: Tensor, labels_M: Tensor, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> Tensor:
    """Losses in plain torch of the dtype of the logits."""
    log_softmax_MV = torch.log_softmax(logits_MV, dim=1)
    losses_M = -(1 - label_smoothing) * log_softmax_MV.gather(1, labels_M[:, None])[:, 0]
    if label_smoothing:
        losses_M = losses_M - label_smoothing * log_softmax_MV.mean(1)
    return losses_M + z_loss * logits_MV.logsumexp(1).square() if z_loss else losses_M


@all_dtypes
@all_implementations
@both_strides
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_cross_entropy_is_as_accurate_as_the_baseline(
    dtype: torch.dtype,
    implementation: str,
    device: str,
    strided: bool,
    shape: tuple[int, int],
    scale: float,
) -> None:
    labels_M = labels(*shape, device)

    def op(logits_MV: Tensor) -> Tensor:
        return cross_entropy(logits_MV, labels_M, implementation=implementation)

    def baseline(logits_MV: Tensor) -> Tensor:
        return losses_of(logits_MV, labels_M)

    inputs = [scale * random_inputs(shape)[0]]
    assert_as_accurate(op, baseline, inputs, dtype, strided=strided, device=device)


@all_dtypes
@all_implementations
@plain_and_smoothed
def test_smoothing_and_z_loss_are_as_accurate_as_the_baseline(
    dtype: torch.dtype, implementation: str, device: str, extras: Extras
) -> None:
    labels_M = labels(7, 301, device)

    def op(logits_MV: Tensor) -> Tensor:
        return cross_entropy(logits_MV, labels_M, implementation=implementation, **extras)

    def baseline(logits_MV: Tensor) -> Tensor:
        return losses_of(logits_MV, labels_M, **extras)

    inputs = [3.0 * random_inputs((7, 301))[0]]
    assert_as_accurate(op, baseline, inputs, dtype, device=device)


def run_slices(
    logits_MV: Tensor,
    labels_M: Tensor,
    weights_M: Tensor,
    cuts: list[int],
    implementation: str = "auto",
    **extras: float,
) -> tuple[Tensor, Tensor]:
    """What ranks with the slices between `cuts` do together: (losses, gradient), [M] and [M, V]."""
    vocabulary = logits_MV.shape[1]
    bounds = list(zip([0, *cuts], [*cuts, vocabulary], strict=True))
    slices = [logits_MV[:, start:stop].clone() for start, stop in bounds]
    statistics = [
        torch.stack(softmax_statistics(part, labels_M, start, implementation=implementation))
        for part, (start, _) in zip(slices, bounds, strict=True)
    ]
    whole = merge_statistics(torch.stack(statistics))
    for part, (start, _) in zip(slices, bounds, strict=True):
        written = softmax_gradient_(
            part,
            whole.row_max_M,
            whole.sum_exp_M,
            labels_M,
            weights_M,
            start,
            vocab_size=vocabulary,
            implementation=implementation,
            **extras,
        )
        assert written.data_ptr() == part.data_ptr()
    return token_losses(whole, vocabulary, **extras), torch.cat(slices, dim=1)


def formula(
    logits_MV: Tensor, labels_M: Tensor, weights_M: Tensor, **extras: float
) -> tuple[Tensor, Tensor]:
    """Losses and weighted gradient in plain torch of the dtype of the logits."""
    leaf_MV = logits_MV.clone().requires_grad_()
    losses_M = losses_of(leaf_MV, labels_M, **extras)
    (gradient_MV,) = torch.autograd.grad(losses_M, leaf_MV, weights_M.to(losses_M.dtype))
    return losses_M.detach(), gradient_MV


@all_dtypes
@all_implementations
@plain_and_smoothed
@pytest.mark.parametrize("cuts", [[], [60], [1, 50, 122], [0, 40, 40]], ids=str)
def test_slices_together_are_as_accurate_as_the_baseline(
    dtype: torch.dtype, implementation: str, device: str, extras: Extras, cuts: list[int]
) -> None:
    logits_MV = 4.0 * random_inputs((17, 123))[0].to(device, dtype)
    labels_M = labels(17, 123, device)
    weights_M = random_inputs((17,), seed=5)[0].abs().float().to(device)
    gold = formula(logits_MV.double(), labels_M, weights_M.double(), **extras)
    plain = formula(logits_MV, labels_M, weights_M, **extras)
    ours = run_slices(logits_MV, labels_M, weights_M, cuts, implementation, **extras)
    assert ours[0].dtype == torch.float32
    for name, index in (("losses", 0), ("gradient", 1)):
        assert_close_as_baseline(name, ours[index], plain[index], gold[index], dtype)


cut_vocabularies = given(
    tokens=st.integers(0, 5),
    vocabulary=st.integers(1, 70),
    smoothing=st.sampled_from([0.0, 0.2]),
    z_loss=st.sampled_from([0.0, 0.05]),
    data=st.data(),
)


def check_any_cut(implementation: str, dtype: torch.dtype, tolerance: float, **drawn: Any) -> None:
    tokens, vocabulary = drawn["tokens"], drawn["vocabulary"]
    cuts = sorted(drawn["data"].draw(st.lists(st.integers(0, vocabulary), max_size=4)))
    extras = {"label_smoothing": drawn["smoothing"], "z_loss": drawn["z_loss"]}
    logits_MV = random_inputs((tokens, vocabulary))[0].to(dtype)
    labels_M, weights_M = labels(tokens, vocabulary), torch.rand(tokens).to(dtype)
    ours = run_slices(logits_MV, labels_M, weights_M, cuts, implementation, **extras)
    expected = formula(logits_MV, labels_M, weights_M, **extras)
    for left, right in zip(ours, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


@plain_implementations
@settings(max_examples=40, deadline=None, derandomize=True)
@cut_vocabularies
def test_any_cut_of_the_vocabulary_gives_the_same(implementation: str, **drawn: Any) -> None:
    check_any_cut(implementation, torch.float64, 1e-12, **drawn)


@all_implementations(MODULE.IMPLEMENTATIONS[:2])
@settings(max_examples=40, deadline=None, derandomize=True)
@cut_vocabularies
def test_any_cut_of_the_vocabulary_gives_the_same_by_kernels(
    implementation: str, **drawn: Any
) -> None:
    check_any_cut(implementation, torch.float32, 2e-6, **drawn)


@all_dtypes
def test_blocks_do_not_show(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    logits_MV, labels_M = random_inputs((10, 40))[0].to(dtype), labels(10, 40)
    weights_M = torch.ones(10)
    whole = run_slices(logits_MV, labels_M, weights_M, [], "torch")
    monkeypatch.setattr(MODULE, "_CPU_BLOCK_ELEMENTS", 3 * 40)
    blocked = run_slices(logits_MV, labels_M, weights_M, [], "torch")
    assert all(torch.equal(left, right) for left, right in zip(whole, blocked, strict=True))


@all_dtypes
@all_implementations
@pytest.mark.parametrize("padded, width", [(48, 41), (50, 43), (1030, 1021)])
def test_padded_columns_take_no_part_and_are_not_touched(
    dtype: torch.dtype, implementation: str, device: str, padded: int, width: int
) -> None:
    """A slice of the columns below the vocabulary size, with rows as wide as the padded one."""
    padded_MV = random_inputs((6, padded))[0].to(device, dtype)
    padded_MV[:, width:] = 1000.0
    valid_Mv, labels_M = padded_MV[:, :width], labels(6, width, device)
    weights_M = torch.ones(6, device=device)
    expected = run_slices(valid_Mv, labels_M, weights_M, [], implementation)
    local = softmax_statistics(valid_Mv, labels_M, implementation=implementation)
    softmax_gradient_(valid_Mv, *local[:2], labels_M, weights_M, implementation=implementation)
    torch.testing.assert_close(valid_Mv, expected[1])
    assert (padded_MV[:, width:] == 1000.0).all()


@all_implementations
def test_statistics_are_what_they_say(implementation: str, device: str) -> None:
    logits_Mv = random_inputs((4, 10))[0].float().to(device)
    labels_M = torch.tensor([0, 25, 20, 29], device=device)
    local = softmax_statistics(logits_Mv, labels_M, 20, implementation=implementation)
    shifted_Mv = logits_Mv.double() - logits_Mv.amax(1, keepdim=True)
    assert all(each.dtype == torch.float32 for each in local)
    assert torch.equal(local.row_max_M, logits_Mv.amax(1))
    torch.testing.assert_close(local.sum_exp_M, shifted_Mv.exp().sum(1).float())
    torch.testing.assert_close(local.sum_logits_M, logits_Mv.sum(1))
    zero = torch.zeros((), device=device)
    expected_M = torch.stack([zero, logits_Mv[1, 5], logits_Mv[2, 0], logits_Mv[3, 9]])
    assert torch.equal(local.picked_M, expected_M)


@all_implementations
def test_gradient_of_a_sure_label_keeps_its_digits(implementation: str, device: str) -> None:
    """softmax - 1 is 1e-2 to 3e-4 here, less than the spacing of bf16 numbers near 1."""
    logits_MV = torch.zeros(3, 8, dtype=torch.bfloat16, device=device)
    logits_MV[:, 2] = torch.tensor([6.5, 8.0, 10.0])
    labels_M = torch.full((3,), 2, device=device)
    weights_M = torch.ones(3, device=device)
    gold_MV = formula(logits_MV.double(), labels_M, weights_M.double())[1]
    gradient_MV = run_slices(logits_MV, labels_M, weights_M, [4], implementation)[1]
    torch.testing.assert_close(gradient_MV.double(), gold_MV, rtol=2.0**-7, atol=0)


@all_dtypes
@all_implementations
@pytest.mark.parametrize("column", [0, 4, 300, 308])
def test_non_finite_logits_are_not_hidden(
    dtype: torch.dtype, implementation: str, device: str, column: int
) -> None:
    """An overflow must reach the loss, where the loss scaler sees it, and the gradient."""
    for bad in (torch.inf, torch.nan):
        logits_MV = random_inputs((3, 309))[0].to(device, dtype)
        logits_MV[1, column] = bad
        logits_MV.requires_grad_()
        losses_M = cross_entropy(logits_MV, labels(3, 309, device), implementation=implementation)
        assert losses_M.isfinite().tolist() == [True, False, True]
        (gradient_MV,) = torch.autograd.grad(losses_M.sum(), logits_MV)
        assert gradient_MV.isfinite().all(1).tolist() == [True, False, True]


@all_dtypes
@all_implementations
@pytest.mark.parametrize("minimum", [-torch.inf, -3e4])
def test_forbidden_tokens_have_no_probability(
    dtype: torch.dtype, implementation: str, device: str, minimum: float
) -> None:
    """Columns at -infinity, in front, behind and over whole vectors, get exactly no gradient."""
    logits_MV = random_inputs((2, 400))[0].to(device, dtype)
    allowed_V = torch.zeros(400, dtype=torch.bool, device=device)
    allowed_V[[130, 131, 150]] = True
    logits_MV[:, ~allowed_V] = minimum
    labels_M = torch.full((2,), 131, device=device)
    ours = run_slices(logits_MV, labels_M, torch.ones(2, device=device), [100], implementation)
    few_MV = logits_MV[:, allowed_V].double()
    gold = formula(few_MV, torch.ones_like(labels_M), torch.ones(2, device=device))
    assert not ours[1][:, ~allowed_V].any()
    torch.testing.assert_close(ours[0].double(), gold[0], rtol=1e-5, atol=0)
    gradient_MV = ours[1][:, allowed_V].double()
    torch.testing.assert_close(gradient_MV, gold[1], rtol=4 * torch.finfo(dtype).eps, atol=0)


@plain_implementations
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
    assert cross_entropy(logits_MV, torch.zeros(4).long(), ignored_label=0).sum() == 0


@all_dtypes
@all_implementations
def test_ignored_rows_are_zero_whatever_they_hold(
    dtype: torch.dtype, implementation: str, device: str
) -> None:
    logits_MV = random_inputs((4, 67))[0].to(device, dtype)
    logits_MV[1, 3], logits_MV[2] = torch.nan, -torch.inf
    logits_MV.requires_grad_()
    labels_M = torch.tensor([3, -100, -100, 66], device=device)
    extras = {"label_smoothing": 0.1, "z_loss": 0.1}
    losses_M = cross_entropy(logits_MV, labels_M, implementation=implementation, **extras)
    (gradient_MV,) = torch.autograd.grad(losses_M.sum(), logits_MV)
    assert losses_M[1:3].tolist() == [0.0, 0.0]
    assert not gradient_MV[1:3].any()
    assert gradient_MV[[0, 3]].isfinite().all()
    assert gradient_MV[0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_are_left_alone(dtype: torch.dtype) -> None:
    logits_MV = random_inputs((4, 9))[0].to(dtype).requires_grad_()
    copy = logits_MV.detach().clone()
    loss = cross_entropy(logits_MV, labels(4, 9)).sum()
    loss.backward(retain_graph=True)
    first = logits_MV.grad
    assert first is not None
    logits_MV.grad = None
    loss.backward()
    assert torch.equal(logits_MV, copy)
    assert logits_MV.grad is not None
    assert torch.equal(logits_MV.grad, first)
    with torch.no_grad():
        torch.testing.assert_close(cross_entropy(logits_MV, labels(4, 9)).sum(), loss)


@plain_implementations
@plain_and_smoothed
def test_gradients_against_finite_differences(implementation: str, extras: Extras) -> None:
    labels_M = torch.tensor([3, -100, 8])
    (logits_MV,) = random_inputs((3, 9))
    logits_MV.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: cross_entropy_reference(x, labels_M, **extras), logits_MV
    )
    assert torch.autograd.gradcheck(
        lambda x: cross_entropy(x, labels_M, implementation=implementation, **extras), logits_MV
    )


@all_implementations
def test_a_slice_of_padding_only_adds_nothing(implementation: str, device: str) -> None:
    logits_Mv, labels_M = torch.zeros(3, 0, device=device), torch.tensor([1, 2, 3], device=device)
    local = softmax_statistics(logits_Mv, labels_M, 7, implementation=implementation)
    assert isinstance(local, SoftmaxStatistics)
    assert local.row_max_M.tolist() == [-torch.inf] * 3
    for sums_M in (local.sum_exp_M, local.picked_M, local.sum_logits_M):
        assert sums_M.tolist() == [0.0] * 3
    other = torch.ones(4, 3, device=device)
    merged = merge_statistics(torch.stack([torch.stack(local), other]))
    assert all(torch.equal(each, other[0]) for each in merged)
    ones_M = torch.ones(3, device=device)
    softmax_gradient_(logits_Mv, ones_M, ones_M, labels_M, ones_M, 7, vocab_size=7)
