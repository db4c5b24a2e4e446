"""rms_norm against the formula."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roots.ops import rms_norm
from roots.ops.rms_norm import rms_norm_reference
from tests.ops.accuracy import (
    all_dtypes,
    all_implementations,
    assert_as_accurate,
    assert_equal_in_float64,
    both_strides,
    random_inputs,
)

EPSILON = 1e-5


def formula(x: Tensor, weight_H: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + EPSILON).sqrt() * weight_H


@all_dtypes
@all_implementations
@both_strides
@pytest.mark.parametrize("shape", [(5, 123), (1, 1, 40), (1, 769), (2, 3, 384)], ids=str)
def test_rms_norm_is_as_accurate_as_the_baseline(
    dtype: torch.dtype, implementation: str, strided: bool, shape: tuple[int, ...]
) -> None:
    x, weight_H = random_inputs(shape, shape[-1:])

    def op(x: Tensor, weight_H: Tensor) -> Tensor:
        return rms_norm(x, weight_H, EPSILON, implementation=implementation)

    assert_as_accurate(op, formula, [3.0 * x, 1.0 + 0.1 * weight_H], dtype, strided=strided)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(rows=st.integers(0, 9), hidden=st.integers(1, 70), seed=st.integers(0, 1000))
def test_rms_norm_of_any_shape(rows: int, hidden: int, seed: int) -> None:
    inputs = random_inputs((rows, hidden), (hidden,), seed=seed)
    assert_equal_in_float64(rms_norm, formula, inputs)


@all_implementations
def test_squares_beyond_fp16_do_not_overflow(implementation: str) -> None:
    """300^2 exceeds the largest fp16 number; statistics in fp32 do not care."""
    x = torch.full((2, 64), 300.0, dtype=torch.float16)
    weight_H = torch.ones(64, dtype=torch.float16)
    y = rms_norm(x, weight_H, implementation=implementation)
    assert torch.equal(y, torch.ones_like(y))


@all_implementations
def test_rms_norm_gradients_against_finite_differences(implementation: str) -> None:
    inputs = [x.requires_grad_() for x in random_inputs((3, 2, 7), (7,))]
    assert torch.autograd.gradcheck(
        lambda x, weight_H: rms_norm(x, weight_H, EPSILON, implementation=implementation), inputs
    )


def test_reference_matches_torch() -> None:
    x, weight_H = random_inputs((4, 9), (9,))
    expected = torch.nn.functional.rms_norm(x, (9,), weight_H, EPSILON)
    torch.testing.assert_close(rms_norm_reference(x, weight_H, EPSILON), expected)


def test_only_wanted_gradients_are_returned() -> None:
    x, weight_H = random_inputs((4, 9), (9,))
    rms_norm(x, weight_H.requires_grad_(), EPSILON).sum().backward()
    assert weight_H.grad is not None
    with pytest.raises(RuntimeError, match="does not require grad"):
        rms_norm(x, weight_H.detach(), EPSILON).sum().backward()
