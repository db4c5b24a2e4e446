"""swiglu against the formula."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roots.errors import RootsError
from roots.ops import swiglu
from roots.ops.swiglu import swiglu_reference
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


def formula(x: Tensor, bias: Tensor | None = None) -> Tensor:
    gate, up = (x if bias is None else x + bias).chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up


@all_dtypes
@all_implementations
@both_strides
@pytest.mark.parametrize("shape", [(5, 246), (1, 130), (2, 3, 768), (70, 48), (257, 34)], ids=str)
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no_bias"])
def test_swiglu_is_as_accurate_as_the_baseline(
    dtype: torch.dtype,
    implementation: str,
    device: str,
    strided: bool,
    shape: tuple[int, ...],
    with_bias: bool,
) -> None:
    # The whole of the curve, up to where the gate is open or shut.
    inputs = [3.0 * x for x in random_inputs(shape, shape[-1:])[: 1 + with_bias]]

    def op(*operands: Tensor) -> Tensor:
        return swiglu(*operands, implementation=implementation)

    assert_as_accurate(op, formula, inputs, dtype, strided=strided, device=device)


@all_implementations
def test_rows_at_odd_addresses(implementation: str, device: str) -> None:
    """A view that is contiguous but does not begin at a multiple of 16 bytes."""
    (x,) = random_inputs((3 * 64 + 1,))
    x = x.to(device, torch.bfloat16)
    actual = swiglu(x[1:].view(3, 64), implementation=implementation)
    expected = swiglu(x[1:].view(3, 64).clone(), implementation=implementation)
    assert torch.equal(actual, expected)


@all_implementations
@pytest.mark.parametrize("shape", [(0, 6), (2, 0, 6), (3, 0)], ids=str)
def test_empty_tensors(implementation: str, device: str, shape: tuple[int, ...]) -> None:
    x = torch.ones(shape, device=device, requires_grad=True)
    bias = torch.ones(shape[-1:], device=device, requires_grad=True)
    y = swiglu(x, bias, implementation=implementation)
    y.sum().backward()
    assert y.shape == (*shape[:-1], shape[-1] // 2)
    assert x.grad is not None
    assert bias.grad is not None
    assert x.grad.shape == shape
    assert torch.equal(bias.grad, torch.zeros_like(bias))


@all_dtypes
@all_implementations
def test_what_is_not_finite_stays_so(dtype: torch.dtype, implementation: str, device: str) -> None:
    """A NaN or an overflow must reach the loss, where it is looked for; it stays in its place."""
    x = torch.ones(3, 40, dtype=dtype, device=device)
    x[0, 3], x[1, 25], x[2, 7] = torch.nan, torch.nan, torch.inf
    x.requires_grad_()
    y = swiglu(x, implementation=implementation)
    wrong = torch.zeros(3, 20, dtype=torch.bool, device=device)
    wrong[0, 3] = wrong[1, 5] = wrong[2, 7] = True
    assert torch.equal(~y.isfinite(), wrong)
    (dx,) = torch.autograd.grad(y.nansum(), x)
    assert dx[0, 3].isnan()
    assert dx[1, 5].isnan()


@all_kernels
def test_opcheck(namespace: str, device: str) -> None:
    ops = getattr(torch.ops, namespace)
    for shape in ((3, 4, 10), (2, 64)):
        x, bias, dy = (
            tensor.to(device, torch.float32)
            for tensor in random_inputs(shape, shape[-1:], (*shape[:-1], shape[-1] // 2))
        )
        for operands in ((x, bias), (x, None)):
            leaves = [
                each.clone().requires_grad_() if each is not None else None for each in operands
            ]
            torch.library.opcheck(ops.swiglu_forward.default, leaves)
            torch.library.opcheck(ops.swiglu_backward.default, (dy, *operands))


@all_kernels
def test_bias_gradient_does_not_depend_on_threads(namespace: str, device: str) -> None:
    backward = getattr(torch.ops, namespace).swiglu_backward
    x, bias, dy = (t.float().to(device) for t in random_inputs((300, 18), (18,), (300, 9)))
    assert_sum_ignores_threads(lambda: backward(dy, x, bias)[1])


@settings(max_examples=20, deadline=None, derandomize=True)
@given(rows=st.integers(0, 9), size=st.integers(1, 70))
def test_swiglu_of_any_shape(rows: int, size: int) -> None:
    inputs = random_inputs((rows, 2 * size), (2 * size,))
    assert_equal_in_float64(swiglu, formula, inputs)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(rows=st.integers(0, 70), size=st.integers(1, 150), dtype=st.sampled_from(["bf16", "fp32"]))
def test_kernel_of_any_shape(rows: int, size: int, dtype: str) -> None:
    """Every length of the rest that no vector fills."""
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    inputs = [x.to(kind) for x in random_inputs((rows, 2 * size), (2 * size,))]
    torch.testing.assert_close(swiglu(*inputs), swiglu_reference(*inputs))


def test_gradients_of_the_reference() -> None:
    inputs = [x.requires_grad_() for x in random_inputs((3, 14), (14,))]
    assert torch.autograd.gradcheck(swiglu_reference, inputs)


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(RootsError) as caught:
        swiglu(torch.zeros(2, 5))
    assert str(caught.value) == (
        "x=[2, 5]: must have an even last dim, gate and up side by side; concatenate gate and up"
    )
    with pytest.raises(RootsError) as caught:
        swiglu(torch.zeros(2, 6), torch.zeros(3))
    assert str(caught.value) == (
        "bias=[3]: must have the size of the last dim of x [2, 6]; pass one number a column"
    )


@all_kernels
def test_kernel_messages(namespace: str, device: str) -> None:
    ops = getattr(torch.ops, namespace)
    x = torch.zeros(2, 6, device=device)
    cases = [
        (
            lambda: ops.swiglu_forward(x[:, :5], None),
            "x [2, 5] must have an even last dim: gate and up are its halves.",
        ),
        (
            lambda: ops.swiglu_forward(x, x[0, :3]),
            "bias [3] must have the size of the last dim of x [2, 6].",
        ),
        (
            lambda: ops.swiglu_forward(x, x[0].half()),
            "bias and x must have the same dtype.",
        ),
        (
            lambda: ops.swiglu_forward(x.double(), None),
            "x must be float32, float16 or bfloat16.",
        ),
        (
            lambda: ops.swiglu_backward(x, x, None),
            "dy [2, 6] must have the shape of x [2, 6] with half of its last dim.",
        ),
    ]
    for call, message in cases:
        with pytest.raises(RuntimeError) as caught:
            call()
        assert message in str(caught.value)
