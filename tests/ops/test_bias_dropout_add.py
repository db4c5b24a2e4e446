"""bias_dropout_add against its parts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roots.ops import bias_dropout_add, dropout
from roots.ops.bias_dropout_add import IMPLEMENTATIONS
from roots.ops.dispatch import Request, select
from roots.ops.dropout import keep_mask, token_keys
from roots.seeding import derive_key
from tests.ops.accuracy import (
    all_dtypes,
    all_implementations,
    all_kernels,
    assert_as_accurate,
    assert_equal_in_float64,
    both_strides,
    plain_implementations,
    random_inputs,
)
from tests.ops.columns import assert_sum_ignores_threads


def row_keys(count: int) -> Tensor:
    return torch.tensor([derive_key("test", row) for row in range(count)], dtype=torch.int64)


@all_dtypes
@all_implementations
@both_strides
@pytest.mark.parametrize("rate", [0.0, 0.2])
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("shape", [(2, 5, 123), (1, 1, 769), (3, 33, 40), (2, 129, 8)], ids=str)
def test_bias_dropout_add_is_as_accurate_as_the_baseline(
    dtype: torch.dtype,
    implementation: str,
    device: str,
    strided: bool,
    rate: float,
    with_bias: bool,
    shape: tuple[int, int, int],
) -> None:
    keys_B = row_keys(shape[0]).to(device)
    keep_BTH = keep_mask(token_keys(keys_B, "site", shape[1]), shape[2], rate)

    def op(x_BTH: Tensor, residual_BTH: Tensor, bias_H: Tensor | None = None) -> Tensor:
        return bias_dropout_add(
            x_BTH, bias_H, residual_BTH, rate, keys_B, "site", implementation=implementation
        )

    def baseline(x_BTH: Tensor, residual_BTH: Tensor, bias_H: Tensor | None = None) -> Tensor:
        y_BTH = x_BTH if bias_H is None else x_BTH + bias_H
        return residual_BTH + y_BTH * keep_BTH / (1 - rate)

    inputs = random_inputs(shape, shape, shape[-1:])[: 2 + with_bias]
    assert_as_accurate(op, baseline, inputs, dtype, strided=strided, device=device)


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
    here_T = torch.tensor([1, 6, 7])
    part = bias_dropout_add(
        x_BTH[:, here_T], None, residual_BTH[:, here_T], 0.5, keys_B, "site", positions_T=here_T
    )
    assert torch.equal(part, whole[:, here_T])


@plain_implementations
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


def test_auto_leaves_a_single_addition_to_torch() -> None:
    """Nothing is fused without bias and dropout."""

    def chosen(*features: str) -> str:
        request = Request(torch.float32, "cpu", frozenset(features))
        return select("bias_dropout_add", IMPLEMENTATIONS, request).name

    assert [chosen(), chosen("bias"), chosen("dropout")] == ["torch", "roots", "roots"]


@all_implementations
@pytest.mark.parametrize("shape", [(0, 4, 8), (2, 0, 8), (2, 4, 0)], ids=str)
@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_empty_tensors(
    implementation: str, device: str, shape: tuple[int, int, int], rate: float
) -> None:
    x_BTH = torch.ones(shape, device=device, requires_grad=True)
    bias_H = torch.ones(shape[-1:], device=device, requires_grad=True)
    keys_B = row_keys(shape[0]).to(device)
    y_BTH = bias_dropout_add(
        x_BTH, bias_H, x_BTH, rate, keys_B, "site", implementation=implementation
    )
    y_BTH.sum().backward()
    assert y_BTH.shape == shape
    assert x_BTH.grad is not None
    assert bias_H.grad is not None
    assert x_BTH.grad.shape == shape
    assert torch.equal(bias_H.grad, torch.zeros_like(bias_H))


@all_kernels
def test_opcheck(namespace: str, device: str) -> None:
    ops = getattr(torch.ops, namespace)
    shapes = ((2, 5, 24), (24,), (2, 5, 24))
    x, bias, residual = (t.to(device, torch.float32) for t in random_inputs(*shapes))
    keys = token_keys(row_keys(2), "site", 5).to(device)
    for operands in (
        (x, bias, residual, keys, 0.3),
        (x, None, residual, None, 0.0),
        (x, bias, None, None, 0.0),
        (x, None, None, keys, 0.3),
    ):
        leaves = [t.clone().requires_grad_() if t is not None else None for t in operands[:3]]
        torch.library.opcheck(ops.bias_dropout_add_forward.default, (*leaves, *operands[3:]))
        backward = (x, *operands[3:], operands[1] is not None)
        torch.library.opcheck(ops.bias_dropout_add_backward.default, backward)


@all_kernels
def test_bias_gradient_does_not_depend_on_threads(namespace: str, device: str) -> None:
    backward = getattr(torch.ops, namespace).bias_dropout_add_backward
    (dy,) = (t.float().to(device) for t in random_inputs((4, 75, 9)))
    keys = token_keys(row_keys(4), "site", 75).to(device)
    assert_sum_ignores_threads(lambda: backward(dy, keys, 0.3, True)[1])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.integers(0, 3),
    tokens=st.integers(0, 9),
    hidden=st.integers(1, 150),
    rate=st.sampled_from([0.0, 0.1, 0.7]),
    sixteen=st.booleans(),
)
def test_kernel_of_any_shape(
    rows: int, tokens: int, hidden: int, rate: float, sixteen: bool
) -> None:
    """Every length of the rest that no vector fills."""
    shape = (rows, tokens, hidden)
    dtype = torch.bfloat16 if sixteen else torch.float32
    x, bias, residual = (t.to(dtype) for t in random_inputs(shape, (hidden,), shape))
    operands = (x, bias, residual, rate, row_keys(rows), "site")
    expected = bias_dropout_add(*operands, implementation="reference")
    torch.testing.assert_close(bias_dropout_add(*operands, implementation="roots"), expected)


@all_kernels
def test_distances_beyond_32_bits(namespace: str, device: str) -> None:
    """Rows 2^31 elements apart, of memory that is never touched in between."""
    ops = getattr(torch.ops, namespace)
    far = 2**31 + 64
    x = torch.empty(far + 4096, dtype=torch.bfloat16, device=device)
    x = x.as_strided((2, 3, 16), (far, 32, 1))
    x.copy_(random_inputs((2, 3, 16))[0])
    keys = token_keys(row_keys(2), "site", 3).to(device)
    y = ops.bias_dropout_add_forward(x.clone(), x[1, 0].clone(), x.clone(), keys, 0.3)
    assert torch.equal(ops.bias_dropout_add_forward(x, x[1, 0], x, keys, 0.3), y)
    expected = ops.bias_dropout_add_backward(x.clone(), keys, 0.3, True)
    actual = ops.bias_dropout_add_backward(x, keys, 0.3, True)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@all_kernels
def test_kernel_messages(namespace: str, device: str) -> None:
    ops = getattr(torch.ops, namespace)
    x = torch.zeros(2, 3, 4, device=device)
    keys = torch.zeros(2, 3, dtype=torch.int64, device=device)
    cases = [
        (
            lambda: ops.bias_dropout_add_forward(x[0], None, None, None, 0.0),
            "x [3, 4] must have 3 dims: rows, tokens, hidden.",
        ),
        (
            lambda: ops.bias_dropout_add_forward(x, x[0, 0, :3], None, None, 0.0),
            "bias [3] must have the size of the last dim of x [2, 3, 4].",
        ),
        (
            lambda: ops.bias_dropout_add_forward(x, None, x[:1], None, 0.0),
            "residual [1, 3, 4] must have the shape of x [2, 3, 4].",
        ),
        (
            lambda: ops.bias_dropout_add_forward(x, None, x.half(), None, 0.0),
            "residual and x must have the same dtype.",
        ),
        (
            lambda: ops.bias_dropout_add_forward(x, None, None, keys[:, :2], 0.5),
            "token_keys [2, 2] must have one number for every token of x [2, 3, 4].",
        ),
        (
            lambda: ops.bias_dropout_add_forward(x, None, None, keys.int(), 0.5),
            "token_keys must be int64.",
        ),
        (
            lambda: ops.bias_dropout_add_backward(x, keys, 1.0, False),
            "rate 1 must be at least 0 and below 1.",
        ),
        (
            lambda: ops.bias_dropout_add_forward(x.double(), None, None, None, 0.0),
            "x must be float32, float16 or bfloat16.",
        ),
    ]
    for call, message in cases:
        with pytest.raises(RuntimeError) as caught:
            call()
        assert message in str(caught.value)
