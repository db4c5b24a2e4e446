"""swiglu against the formula."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roots.ops import swiglu
from roots.ops.swiglu import swiglu_reference
from tests.ops.accuracy import (
    all_dtypes,
    all_implementations,
    assert_as_accurate,
    assert_equal_in_float64,
    both_strides,
    random_inputs,
)


def formula(gate: Tensor, up: Tensor) -> Tensor:
    return gate * torch.sigmoid(gate) * up


@all_dtypes
@all_implementations
@both_strides
@pytest.mark.parametrize("shape", [(5, 123), (1, 65), (2, 3, 384)], ids=str)
def test_swiglu_is_as_accurate_as_the_baseline(
    dtype: torch.dtype, implementation: str, strided: bool, shape: tuple[int, ...]
) -> None:
    def op(gate: Tensor, up: Tensor) -> Tensor:
        return swiglu(gate, up, implementation=implementation)

    assert_as_accurate(op, formula, random_inputs(shape, shape), dtype, strided=strided)


@all_dtypes
def test_swiglu_of_two_halves_of_one_tensor(dtype: torch.dtype) -> None:
    """How the models call it: gate and up are views of one projection."""
    assert_as_accurate(
        lambda x: swiglu(*x.chunk(2, dim=-1)),
        lambda x: formula(*x.chunk(2, dim=-1)),
        random_inputs((3, 5, 34)),
        dtype,
    )


@settings(max_examples=20, deadline=None, derandomize=True)
@given(rows=st.integers(0, 9), size=st.integers(1, 70))
def test_swiglu_of_any_shape(rows: int, size: int) -> None:
    inputs = random_inputs((rows, size), (rows, size))
    assert_equal_in_float64(swiglu, formula, inputs)


def test_gradients_of_the_reference() -> None:
    inputs = [x.requires_grad_() for x in random_inputs((3, 7), (3, 7))]
    assert torch.autograd.gradcheck(swiglu_reference, inputs)
