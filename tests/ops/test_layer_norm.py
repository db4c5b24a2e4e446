"""layer_norm against the formula."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roots.ops import layer_norm
from roots.ops.layer_norm import layer_norm_reference
from tests.ops.accuracy import (
    all_dtypes,
    all_implementations,
    assert_as_accurate,
    assert_equal_in_float64,
    both_strides,
    random_inputs,
)

EPSILON = 1e-5


def formula(x: Tensor, weight_H: Tensor, bias_H: Tensor | None = None) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    y = centred / (centred.pow(2).mean(-1, keepdim=True) + EPSILON).sqrt() * weight_H
    return y if bias_H is None else y + bias_H


@all_dtypes
@all_implementations
@both_strides
@pytest.mark.parametrize("shape", [(5, 123), (1, 1, 40), (1, 769), (2, 3, 384)], ids=str)
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no_bias"])
def test_layer_norm_is_as_accurate_as_the_baseline(
    dtype: torch.dtype, implementation: str, strided: bool, shape: tuple[int, ...], with_bias: bool
) -> None:
    x, weight_H, bias_H = random_inputs(shape, shape[-1:], shape[-1:])
    inputs = [2.0 * x + 3.0, 1.0 + 0.1 * weight_H] + [bias_H] * with_bias

    def op(x: Tensor, weight_H: Tensor, bias_H: Tensor | None = None) -> Tensor:
        return layer_norm(x, weight_H, bias_H, EPSILON, implementation=implementation)

    assert_as_accurate(op, formula, inputs, dtype, strided=strided)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(rows=st.integers(0, 9), hidden=st.integers(2, 70), seed=st.integers(0, 1000))
def test_layer_norm_of_any_shape(rows: int, hidden: int, seed: int) -> None:
    inputs = random_inputs((rows, hidden), (hidden,), (hidden,), seed=seed)
    assert_equal_in_float64(layer_norm, formula, inputs)


@all_implementations
def test_statistics_of_16_bit_input_are_fp32(implementation: str) -> None:
    """In bf16 the mean of 4096 values near 1000 is lost; in fp32 the rows are centred."""
    x = 1000.0 + 64.0 * random_inputs((2, 4096))[0]
    x = x.to(torch.bfloat16)
    ones, zeros = torch.ones(4096, dtype=torch.bfloat16), torch.zeros(4096, dtype=torch.bfloat16)
    y = layer_norm(x, ones, zeros, implementation=implementation)
    assert y.double().mean(-1).abs().max() < 1e-3
    assert (y.double().var(-1, correction=0) - 1).abs().max() < 1e-2


@pytest.mark.parametrize("with_bias", [True, False])
def test_gradients_of_the_reference(with_bias: bool) -> None:
    inputs = [x.requires_grad_() for x in random_inputs((3, 7), (7,), (7,))]
    bias_H = inputs[2] if with_bias else None
    assert torch.autograd.gradcheck(
        lambda x, weight_H: layer_norm_reference(x, weight_H, bias_H, EPSILON), inputs[:2]
    )
