"""bias_dropout_add against its parts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roots.ops import bias_dropout_add, dropout
from roots.ops.dropout import keep_mask, token_keys
from roots.seeding import derive_key
from tests.ops.accuracy import (
    all_dtypes,
    all_implementations,
    assert_as_accurate,
    assert_equal_in_float64,
    both_strides,
    random_inputs,
)


def row_keys(count: int) -> Tensor:
    return torch.tensor([derive_key("test", row) for row in range(count)], dtype=torch.int64)


@all_dtypes
@all_implementations
@both_strides
@pytest.mark.parametrize("rate", [0.0, 0.2])
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("shape", [(2, 5, 123), (1, 1, 769)], ids=str)
def test_bias_dropout_add_is_as_accurate_as_the_baseline(
    dtype: torch.dtype,
    implementation: str,
    strided: bool,
    rate: float,
    with_bias: bool,
    shape: tuple[int, int, int],
) -> None:
    keys_B = row_keys(shape[0])
    keep_BTH = keep_mask(token_keys(keys_B, "site", shape[1]), shape[2], rate)

    def op(x_BTH: Tensor, residual_BTH: Tensor, bias_H: Tensor | None = None) -> Tensor:
        return bias_dropout_add(
            x_BTH, bias_H, residual_BTH, rate, keys_B, "site", implementation=implementation
        )

    def baseline(x_BTH: Tensor, residual_BTH: Tensor, bias_H: Tensor | None = None) -> Tensor:
        y_BTH = x_BTH if bias_H is None else x_BTH + bias_H
        return residual_BTH + y_BTH * keep_BTH / (1 - rate)

    inputs = random_inputs(shape, shape, shape[-1:])[: 2 + with_bias]
    assert_as_accurate(op, baseline, inputs, dtype, strided=strided)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    rows=st.integers(0, 3),
    tokens=st.integers(0, 9),
    hidden=st.integers(1, 40),
    rate=st.sampled_from([0.0, 0.1, 0.7]),
)
def test_bias_dropout_add_of_any_shape(rows: int, tokens: int, hidden: int, rate: float) -> None:
    """It is dropout of x + bias, added to the residual: the same mask as the op `dropout`."""
    keys_B = row_keys(rows)
    shape = (rows, tokens, hidden)
    assert_equal_in_float64(
        lambda x, bias, residual: bias_dropout_add(x, bias, residual, rate, keys_B, "site"),
        lambda x, bias, residual: residual + dropout(x + bias, rate, keys_B, "site"),
        random_inputs(shape, (hidden,), shape),
    )


def test_a_chunk_of_the_sequence_draws_its_part_of_the_mask() -> None:
    x_BTH, residual_BTH = (x.float() for x in random_inputs((2, 8, 16), (2, 8, 16)))
    keys_B = row_keys(2)
    whole = bias_dropout_add(x_BTH, None, residual_BTH, 0.5, keys_B, "site")
    part = bias_dropout_add(
        x_BTH[:, 3:], None, residual_BTH[:, 3:], 0.5, keys_B, "site", first_index=3
    )
    assert torch.equal(part, whole[:, 3:])


@all_implementations
def test_gradients_against_finite_differences(implementation: str) -> None:
    inputs = [x.requires_grad_() for x in random_inputs((2, 3, 5), (5,), (2, 3, 5))]
    keys_B = row_keys(2)
    assert torch.autograd.gradcheck(
        lambda x, bias, residual: bias_dropout_add(
            x, bias, residual, 0.4, keys_B, "site", implementation=implementation
        ),
        inputs,
    )


def test_inputs_are_left_alone() -> None:
    inputs = x_BTH, bias_H, residual_BTH = random_inputs((2, 3, 5), (5,), (2, 3, 5))
    copies = [x.clone() for x in inputs]
    bias_dropout_add(x_BTH, bias_H, residual_BTH, 0.4, row_keys(2), "site")
    bias_dropout_add(x_BTH, bias_H, residual_BTH, 0.0, None, "site")
    assert all(torch.equal(x, copy) for x, copy in zip(inputs, copies, strict=True))
