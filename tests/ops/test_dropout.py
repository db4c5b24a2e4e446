"""dropout: the mask as a function of (key, site, token, element), its statistics, its gradient."""

from __future__ import annotations

import importlib
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roots.errors import RootsError
from roots.ops import dropout
from roots.ops.dropout import keep_mask, keep_mask_reference, token_keys
from roots.seeding import derive_key
from tests.ops.accuracy import (
    all_dtypes,
    all_implementations,
    all_kernels,
    assert_as_accurate,
    plain_implementations,
    random_inputs,
)


def row_keys(count: int, seed: int = 0) -> Tensor:
    return torch.tensor([derive_key(seed, "dropout", row) for row in range(count)])


def mask(rows: int, tokens: int, size: int, rate: float, site: str = "site") -> Tensor:
    return keep_mask(token_keys(row_keys(rows), site, tokens), size, rate)


@all_dtypes
@all_implementations
@pytest.mark.parametrize("shape", [(2, 5, 123), (1, 1, 769), (3, 7, 40)], ids=str)
def test_dropout_is_as_accurate_as_the_baseline(
    dtype: torch.dtype, implementation: str, device: str, shape: tuple[int, int, int]
) -> None:
    keep_BTH = mask(*shape, rate=0.3).to(device)
    keys_B = row_keys(shape[0]).to(device)

    def op(x_BTH: Tensor) -> Tensor:
        return dropout(x_BTH, 0.3, keys_B, "site", implementation=implementation)

    def baseline(x_BTH: Tensor) -> Tensor:
        return x_BTH * keep_BTH / (1 - 0.3)

    for strided in (False, True):
        inputs = random_inputs(shape)
        assert_as_accurate(op, baseline, inputs, dtype, strided=strided, device=device)


@all_kernels
@pytest.mark.parametrize("rate", [0.0, 1e-9, 0.1, 0.5, 0.999, 1 - 1e-12])
@pytest.mark.parametrize("size", [1, 40, 1027])
def test_kernels_draw_the_mask_of_the_definition(
    namespace: str, device: str, rate: float, size: int
) -> None:
    """To the bit, in both directions, for keys of every sign and the rates at the ends."""
    ops = getattr(torch.ops, namespace)
    keys_BT = token_keys(row_keys(3), "site", 7)
    keys_BT[0, :4] = torch.tensor([0, -1, 2**63 - 1, -(2**63)])
    expected = keep_mask_reference(keys_BT, size, rate)
    ones, keys_BT = torch.ones(3, 7, size, device=device), keys_BT.to(device)
    y = ops.bias_dropout_add_forward(ones, None, None, keys_BT, rate)
    dx, _ = ops.bias_dropout_add_backward(ones, keys_BT, rate, False)
    assert torch.equal(y.cpu() != 0, expected)
    assert torch.equal(dx, y)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    keys=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=0, max_size=4),
    size=st.integers(0, 300),
    rate=st.floats(0.0, 0.999),
)
def test_mask_equals_its_64_bit_reference(keys: list[int], size: int, rate: float) -> None:
    keys_R = torch.tensor(keys, dtype=torch.int64)
    assert torch.equal(keep_mask(keys_R, size, rate), keep_mask_reference(keys_R, size, rate))


def test_mask_equals_an_independent_computation_in_python_integers() -> None:
    """The definition of the module's docstring, so that no change of it goes unnoticed."""
    key, rate = -0x0123456789ABCDEF, 0.25
    low, high = key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF
    expected = []
    for element in range(50):
        x = (low + element * 0x9E3779B9) % 2**32
        x ^= x >> 16
        x = (x * 0x7FEB352D + high) % 2**32
        x ^= x >> 15
        x = (x * 0x846CA68B) % 2**32
        # The sign bit of the draw is flipped by the comparison of signed numbers.
        expected.append((x ^ 2**31) >= rate * 2**32)
    assert keep_mask(torch.tensor([key]), 50, rate)[0].tolist() == expected


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = mask(3, 50, 40, 0.5)
    # By import, since the attribute `dropout` of roots.ops is the function.
    module = importlib.import_module("roots.ops.dropout")
    monkeypatch.setattr(module, "_CPU_BLOCK_ELEMENTS", 7 * 40)
    assert torch.equal(mask(3, 50, 40, 0.5), whole)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(rows=st.integers(1, 4), tokens=st.integers(1, 20), size=st.integers(1, 40), data=st.data())
def test_a_part_of_the_batch_draws_its_part_of_the_mask(
    rows: int, tokens: int, size: int, data: st.DataObject
) -> None:
    """Rows [a, b) and tokens [c, d) of a batch: any data, micro-batch or sequence split."""
    first_row = data.draw(st.integers(0, rows - 1))
    first_token = data.draw(st.integers(0, tokens - 1))
    x_BTH = torch.ones(rows, tokens, size)
    keys_B = row_keys(rows)
    whole = dropout(x_BTH, 0.4, keys_B, "site")
    positions_T = torch.arange(first_token, tokens)
    part = dropout(
        x_BTH[first_row:, first_token:], 0.4, keys_B[first_row:], "site", positions_T=positions_T
    )
    assert torch.equal(part, whole[first_row:, first_token:])


def test_mask_ignores_the_state_of_generators() -> None:
    x_BTH = torch.ones(2, 8, 16)
    torch.manual_seed(1)
    random.seed(1)
    first = dropout(x_BTH, 0.5, row_keys(2), "site")
    torch.manual_seed(2)
    assert torch.equal(dropout(x_BTH, 0.5, row_keys(2), "site"), first)
    state = torch.get_rng_state()
    dropout(x_BTH, 0.5, row_keys(2), "site")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_share_of_dropped_elements(rate: float) -> None:
    """Within 4 standard deviations over all, and per row, token and element without outliers."""
    keep_BTH = mask(16, 128, 256, rate).double()
    deviation = math.sqrt(rate * (1 - rate))
    assert abs(keep_BTH.mean() - (1 - rate)) < 4 * deviation / math.sqrt(keep_BTH.numel())
    for dims in ((1, 2), (0, 2), (0, 1)):
        means = keep_BTH.mean(dims)
        count = keep_BTH.numel() / means.numel()
        scores = (means - (1 - rate)) / (deviation / math.sqrt(count))
        assert scores.abs().max() < 5
        # Independent draws make the scores standard normal: their spread is 1, no less, no more.
        assert abs(scores.square().mean() - 1) < 5 * math.sqrt(2 / means.numel())


@pytest.mark.parametrize("shift", [1, 2, 3, 7, 8, 16, 64, 128])
@pytest.mark.parametrize("dim", [0, 1, 2], ids=["rows", "tokens", "elements"])
def test_neighbours_are_uncorrelated(dim: int, shift: int) -> None:
    draws = mask(32, 160, 160, 0.5).double() * 2 - 1
    length = draws.shape[dim]
    if shift >= length:
        shift = shift % length + 1
    left, right = draws.narrow(dim, 0, length - shift), draws.narrow(dim, shift, length - shift)
    assert abs((left * right).mean()) < 4.5 / math.sqrt(left.numel())


def test_sites_and_keys_are_uncorrelated() -> None:
    shape = (8, 128, 128)
    masks = [mask(*shape, rate=0.5, site=f"layers.{layer}.mlp") for layer in range(6)]
    other = keep_mask(token_keys(row_keys(8, seed=1), "layers.0.mlp", 128), 128, 0.5)
    draws = torch.stack([*masks, other]).flatten(1).double() * 2 - 1
    correlations = draws @ draws.t() / draws.shape[1]
    off_diagonal = correlations - torch.diag(correlations.diagonal())
    assert off_diagonal.abs().max() < 4.5 / math.sqrt(draws.shape[1])


def test_keys_that_differ_in_one_bit_draw_different_masks() -> None:
    keys_B = torch.tensor([0, *(1 << bit for bit in range(63)), -(1 << 63)])
    draws = keep_mask(token_keys(keys_B, "site", 1), 4096, 0.5)[:, 0].double() * 2 - 1
    correlations = draws[1:] @ draws[0] / 4096
    assert correlations.abs().max() < 4.5 / math.sqrt(4096)


def test_patterns_of_eight_neighbours_are_equally_frequent() -> None:
    """Chi-square with 255 degrees of freedom: mean 255, standard deviation 22.6."""
    bits = mask(16, 128, 512, 0.5).long().view(-1, 8)
    patterns = (bits << torch.arange(8)).sum(1)
    counts = torch.bincount(patterns, minlength=256).double()
    expected = patterns.numel() / 256
    chi_square = ((counts - expected).square() / expected).sum()
    assert 255 - 4.5 * 22.6 < chi_square < 255 + 4.5 * 22.6


@all_implementations
def test_mean_is_kept(implementation: str, device: str) -> None:
    x_BTH = torch.ones(8, 128, 256, device=device)
    keys_B = row_keys(8).to(device)
    y_BTH = dropout(x_BTH, 0.25, keys_B, "site", implementation=implementation)
    assert abs(y_BTH.double().mean() - 1) < 4 * math.sqrt(0.25 / 0.75 / y_BTH.numel())
    assert set(y_BTH.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}


@plain_implementations
def test_gradients_against_finite_differences(implementation: str) -> None:
    (x_BTH,) = random_inputs((2, 3, 5))
    keys_B = row_keys(2)
    assert torch.autograd.gradcheck(
        lambda x: dropout(x, 0.4, keys_B, "site", implementation=implementation),
        x_BTH.requires_grad_(),
    )


def test_backward_uses_the_mask_of_forward() -> None:
    x_BTH = torch.ones(2, 9, 33, requires_grad=True)
    y_BTH = dropout(x_BTH, 0.4, row_keys(2), "site")
    (grad_BTH,) = torch.autograd.grad(y_BTH.sum(), x_BTH)
    assert torch.equal(grad_BTH, y_BTH)


def test_rate_zero_is_the_identity_and_needs_no_keys() -> None:
    x_BTH = torch.ones(1, 2, 3)
    assert dropout(x_BTH, 0.0, None, "site") is x_BTH


@pytest.mark.parametrize("shape", [(0, 4, 8), (2, 0, 8), (2, 4, 0)])
def test_empty_tensors(shape: tuple[int, int, int]) -> None:
    x_BTH = torch.ones(shape, requires_grad=True)
    y_BTH = dropout(x_BTH, 0.5, row_keys(shape[0]).view(-1).long(), "site")
    y_BTH.sum().backward()
    assert y_BTH.shape == shape
    assert x_BTH.grad is not None
    assert x_BTH.grad.shape == shape


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, math.nan])
def test_bad_rate_is_refused(rate: float) -> None:
    with pytest.raises(RootsError) as caught:
        dropout(torch.ones(1, 1, 1), rate, row_keys(1), "site")
    assert str(caught.value) == (
        f"dropout rate={rate}: must be at least 0 and below 1; use 0 for none"
    )


def test_missing_keys_are_refused() -> None:
    with pytest.raises(RootsError) as caught:
        dropout(torch.ones(1, 1, 1), 0.5, None, "site")
    assert str(caught.value) == (
        "dropout rate=0.5: needs a key for every row of the batch; "
        "pass keys_B, or rate 0 in evaluation"
    )
