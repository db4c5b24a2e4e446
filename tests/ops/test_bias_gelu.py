"""gelu with bias against the formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roots.errors import RootsError
from roots.ops import bias_gelu
from roots.ops.bias_gelu import bias_gelu_reference
from tests.ops.accuracy import (
    all_dtypes,
    all_implementations,
    all_kernels,
    assert_as_accurate,
    assert_equal_in_float64,
    both_strides,
    random_inputs,
)
from tests.ops.columns import assert_sum_ignores_threads

FORMS = ["none", "tanh"]


def formula(approximate: str, x: Tensor, bias_F: Tensor | None) -> Tensor:
    z = x if bias_F is None else x + bias_F
    if approximate == "none":
        return 0.5 * z * (1 + torch.erf(z / math.sqrt(2)))
    return 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z * z * z)))


@all_dtypes
@all_implementations
@both_strides
@pytest.mark.parametrize("approximate", FORMS)
@pytest.mark.parametrize("shape", [(5, 123), (1, 65), (2, 3, 384), (70, 48), (257, 17)], ids=str)
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no_bias"])
def test_bias_gelu_is_as_accurate_as_the_baseline(
    dtype: torch.dtype,
    implementation: str,
    device: str,
    strided: bool,
    approximate: str,
    shape: tuple[int, ...],
    with_bias: bool,
) -> None:
    # The whole of the curve, up to where it is linear or zero.
    inputs = [3.0 * x for x in random_inputs(shape, shape[-1:])[: 1 + with_bias]]

    def op(x: Tensor, bias_F: Tensor | None = None) -> Tensor:
        return bias_gelu(x, bias_F, approximate, implementation=implementation)

    def baseline(x: Tensor, bias_F: Tensor | None = None) -> Tensor:
        return formula(approximate, x, bias_F)

    assert_as_accurate(op, baseline, inputs, dtype, strided=strided, device=device)


@all_implementations
def test_rows_at_odd_addresses(implementation: str, device: str) -> None:
    """A view that is contiguous but does not begin at a multiple of 16 bytes."""
    (x,) = random_inputs((3 * 64 + 1,))
    x = x.to(device, torch.bfloat16)
    actual = bias_gelu(x[1:].view(3, 64), implementation=implementation)
    expected = bias_gelu(x[1:].view(3, 64).clone(), implementation=implementation)
    assert torch.equal(actual, expected)


@all_implementations
@pytest.mark.parametrize("shape", [(0, 6), (2, 0, 6), (3, 0)], ids=str)
def test_empty_tensors(implementation: str, device: str, shape: tuple[int, ...]) -> None:
    x = torch.ones(shape, device=device, requires_grad=True)
    bias_F = torch.ones(shape[-1:], device=device, requires_grad=True)
    y = bias_gelu(x, bias_F, implementation=implementation)
    y.sum().backward()
    assert y.shape == shape
    assert x.grad is not None
    assert bias_F.grad is not None
    assert x.grad.shape == shape
    assert torch.equal(bias_F.grad, torch.zeros_like(bias_F))


@all_dtypes
@all_implementations
@pytest.mark.parametrize("approximate", FORMS)
def test_what_is_not_finite_stays_so(
    dtype: torch.dtype, implementation: str, device: str, approximate: str
) -> None:
    """A NaN or an overflow must reach the loss, where it is looked for; it stays in its place."""
    x = torch.ones(3, 40, dtype=dtype, device=device)
    x[0, 3], x[1, 39], x[2, 7] = torch.nan, torch.nan, torch.inf
    wrong = ~x.isfinite()
    x.requires_grad_()
    y = bias_gelu(x, None, approximate, implementation=implementation)
    assert torch.equal(~y.isfinite(), wrong)
    (dx,) = torch.autograd.grad(y.nansum(), x)
    assert dx[0, 3].isnan()
    assert dx[1, 39].isnan()


@all_implementations
@pytest.mark.parametrize("approximate", FORMS)
def test_far_from_zero_it_is_linear_or_zero(
    implementation: str, device: str, approximate: str
) -> None:
    x = torch.tensor([20.0, 100.0, 1e4, 1e6, 1e9], device=device)
    for sign in (1.0, -1.0):
        z = (sign * x).requires_grad_()
        y = bias_gelu(z, None, approximate, implementation=implementation)
        (dz,) = torch.autograd.grad(y.sum(), z)
        torch.testing.assert_close(y, x if sign > 0 else torch.zeros_like(x), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(dz, torch.full_like(x, sign > 0), rtol=0, atol=1e-6)


@all_kernels
def test_opcheck(namespace: str, device: str) -> None:
    ops = getattr(torch.ops, namespace)
    for shape in ((3, 4, 10), (2, 64)):
        x, bias_F, dy = (
            tensor.to(device, torch.float32) for tensor in random_inputs(shape, shape[-1:], shape)
        )
        leaves = [x.clone().requires_grad_(), bias_F.clone().requires_grad_()]
        torch.library.opcheck(ops.bias_gelu_forward.default, (*leaves, True))
        torch.library.opcheck(ops.bias_gelu_forward.default, (leaves[0], None, False))
        torch.library.opcheck(ops.bias_gelu_backward.default, (dy, x, bias_F, True))
        torch.library.opcheck(ops.bias_gelu_backward.default, (dy, x, None, False))


@all_kernels
def test_bias_gradient_does_not_depend_on_threads(namespace: str, device: str) -> None:
    backward = getattr(torch.ops, namespace).bias_gelu_backward
    x, bias_F, dy = (t.float().to(device) for t in random_inputs((300, 9), (9,), (300, 9)))
    assert_sum_ignores_threads(lambda: backward(dy, x, bias_F, False)[1])


@settings(max_examples=20, deadline=None, derandomize=True)
@given(rows=st.integers(0, 9), size=st.integers(1, 70), form=st.sampled_from(FORMS))
def test_bias_gelu_of_any_shape(rows: int, size: int, form: str) -> None:
    inputs = random_inputs((rows, size), (size,))
    assert_equal_in_float64(
        lambda x, bias_F: bias_gelu(x, bias_F, form),
        lambda x, bias_F: formula(form, x, bias_F),
        inputs,
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.integers(0, 70),
    size=st.integers(1, 150),
    form=st.sampled_from(FORMS),
    dtype=st.sampled_from(["bf16", "fp32"]),
)
def test_kernel_of_any_shape(rows: int, size: int, form: str, dtype: str) -> None:
    """Every length of the rest that no vector fills."""
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    x, bias_F = (x.to(kind) for x in random_inputs((rows, size), (size,)))
    expected = bias_gelu_reference(x, bias_F, form)
    torch.testing.assert_close(bias_gelu(x, bias_F, form), expected)


@pytest.mark.parametrize("approximate", FORMS)
def test_gradients_of_the_reference(approximate: str) -> None:
    inputs = [x.requires_grad_() for x in random_inputs((3, 7), (7,))]
    assert torch.autograd.gradcheck(lambda x, b: bias_gelu_reference(x, b, approximate), inputs)


def test_unknown_form_is_refused() -> None:
    with pytest.raises(RootsError) as caught:
        bias_gelu(torch.zeros(2, 2), approximate="quick")
    assert str(caught.value) == "approximate='quick': is no form of gelu; use none or tanh"


def test_bias_of_another_size_is_refused() -> None:
    with pytest.raises(RootsError) as caught:
        bias_gelu(torch.zeros(2, 6), torch.zeros(3))
    assert str(caught.value) == (
        "bias=[3]: must have the size of the last dim of x [2, 6]; pass one number a column"
    )


@all_kernels
def test_kernel_messages(namespace: str, device: str) -> None:
    ops = getattr(torch.ops, namespace)
    x = torch.zeros(2, 6, device=device)
    cases = [
        (
            lambda: ops.bias_gelu_forward(x, x[0, :3], False),
            "bias [3] must have the size of the last dim of x [2, 6].",
        ),
        (
            lambda: ops.bias_gelu_forward(x, x[0].half(), False),
            "bias and x must have the same dtype.",
        ),
        (
            lambda: ops.bias_gelu_forward(x.double(), None, False),
            "x must be float32, float16 or bfloat16.",
        ),
        (
            lambda: ops.bias_gelu_backward(x[:1], x, None, False),
            "dy [1, 6] must have the shape of x [2, 6].",
        ),
    ]
    for call, message in cases:
        with pytest.raises(RuntimeError) as caught:
            call()
        assert message in str(caught.value)
