"""rms_norm against the formula."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roots.ops import rms_norm
from roots.ops.norm import NormOptions
from roots.ops.rms_norm import rms_norm_reference
from tests.ops.accuracy import (
    Op,
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
from tests.ops.norms import LONG_ROWS, SHAPES, at_odd_address, far_apart

EPSILON = 1e-5


def formula(x: Tensor, weight_H: Tensor, *, zero_centred: bool = False) -> Tensor:
    y = x / (x.pow(2).mean(-1, keepdim=True) + EPSILON).sqrt()
    return y * (1.0 + weight_H if zero_centred else weight_H)


def inputs_of(shape: tuple[int, ...]) -> list[Tensor]:
    """x, weight, residual."""
    x, weight_H, residual = random_inputs(shape, shape[-1:], shape)
    return [3.0 * x, 1.0 + 0.1 * weight_H, residual]


@all_dtypes
@all_implementations
@both_strides
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rms_norm_is_as_accurate_as_the_baseline(
    dtype: torch.dtype, implementation: str, device: str, strided: bool, shape: tuple[int, ...]
) -> None:
    def op(x: Tensor, weight_H: Tensor) -> Tensor:
        return rms_norm(x, weight_H, EPSILON, implementation=implementation)

    assert_as_accurate(op, formula, inputs_of(shape)[:2], dtype, strided=strided, device=device)


def with_residual(implementation: str, zero_centred: bool) -> tuple[Op, Op]:
    """The op and the baseline of (x, weight, residual)."""

    def op(x: Tensor, weight_H: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return rms_norm(
            x,
            weight_H,
            EPSILON,
            residual=residual,
            zero_centred=zero_centred,
            implementation=implementation,
        )

    def baseline(x: Tensor, weight_H: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        stream = x + residual
        return formula(stream, weight_H, zero_centred=zero_centred), stream

    return op, baseline


@all_dtypes
@all_implementations
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("zero_centred", [True, False], ids=["zero_centred", "plain"])
def test_sum_with_a_residual_is_as_accurate_as_the_baseline(
    dtype: torch.dtype,
    implementation: str,
    device: str,
    shape: tuple[int, ...],
    zero_centred: bool,
) -> None:
    """y and the new residual, and the gradients through both."""
    op, baseline = with_residual(implementation, zero_centred)
    assert_as_accurate(op, baseline, inputs_of(shape), dtype, strided=True, device=device)


@all_dtypes
@all_implementations
@pytest.mark.parametrize("shape", LONG_ROWS, ids=str)
def test_rows_too_long_for_registers(
    dtype: torch.dtype, implementation: str, device: str, shape: tuple[int, int]
) -> None:
    op, baseline = with_residual(implementation, zero_centred=True)
    assert_as_accurate(op, baseline, inputs_of(shape), dtype, device=device)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(rows=st.integers(0, 9), hidden=st.integers(1, 70), seed=st.integers(0, 1000))
def test_rms_norm_of_any_shape(rows: int, hidden: int, seed: int) -> None:
    inputs = random_inputs((rows, hidden), (hidden,), seed=seed)
    assert_equal_in_float64(rms_norm, formula, inputs)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(rows=st.integers(0, 40), hidden=st.integers(1, 150), sixteen=st.booleans())
def test_kernel_of_any_shape(rows: int, hidden: int, sixteen: bool) -> None:
    """Every length of the rest that no vector fills."""
    dtype = torch.bfloat16 if sixteen else torch.float32
    x, weight_H, residual = (t.to(dtype) for t in inputs_of((rows, hidden)))
    y, stream = rms_norm(x, weight_H, residual=residual, implementation="roots")
    wanted = rms_norm(x, weight_H, residual=residual, implementation="reference")
    torch.testing.assert_close(y, wanted[0])
    assert torch.equal(stream, wanted[1])


@all_implementations
def test_squares_beyond_fp16_do_not_overflow(implementation: str, device: str) -> None:
    """300^2 exceeds the largest fp16 number; statistics in fp32 do not care."""
    x = torch.full((2, 64), 300.0, dtype=torch.float16, device=device)
    y = rms_norm(x, x.new_ones(64), implementation=implementation)
    assert torch.equal(y, torch.ones_like(y))


@all_implementations
def test_operands_at_odd_addresses(implementation: str, device: str) -> None:
    """Views that are contiguous but do not begin at a multiple of 16 bytes, each alone."""
    inputs = [tensor.to(device, torch.bfloat16) for tensor in inputs_of((3, 64))]
    op, _ = with_residual(implementation, zero_centred=False)
    expected = op(*inputs)
    for place, operand in enumerate(inputs):
        odd = at_odd_address(operand)
        actual = op(*inputs[:place], odd, *inputs[place + 1 :])
        for ours, theirs in zip(actual, expected, strict=True):
            torch.testing.assert_close(ours, theirs)


@all_implementations
def test_rows_far_apart_in_memory(implementation: str, device: str) -> None:
    """Elements beyond 2^31 of a storage that nobody fills."""
    x = far_apart(2, 24).to(device)
    weight_H = x.new_ones(24)
    y = rms_norm(x, weight_H, implementation=implementation)
    torch.testing.assert_close(y, rms_norm(x.contiguous(), weight_H, implementation="reference"))


@all_implementations
@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8)], ids=str)
def test_empty_batch(implementation: str, device: str, shape: tuple[int, ...]) -> None:
    x = torch.ones(shape, device=device, requires_grad=True)
    weight_H = torch.ones(8, device=device, requires_grad=True)
    y, _ = rms_norm(x, weight_H, residual=x, implementation=implementation)
    y.sum().backward()
    assert y.shape == shape
    assert weight_H.grad is not None
    assert torch.equal(weight_H.grad, torch.zeros_like(weight_H))


@all_implementations
def test_only_the_new_residual_is_used(implementation: str, device: str) -> None:
    """What has no gradient in y has the gradient of the sum alone."""
    x, weight_H, residual = (t.float().to(device) for t in inputs_of((3, 40)))
    x.requires_grad_()
    _, stream = rms_norm(x, weight_H, residual=residual, implementation=implementation)
    (grad,) = torch.autograd.grad(stream.sum(), x)
    assert torch.equal(grad, torch.ones_like(grad))


@all_kernels
def test_opcheck(namespace: str, device: str) -> None:
    ops = getattr(torch.ops, namespace)
    x, weight, residual = (t.float().to(device) for t in inputs_of((2, 5, 24)))
    for operands in ((x, residual, weight), (x, None, weight)):
        leaves = [t.clone().requires_grad_() if t is not None else None for t in operands]
        torch.library.opcheck(ops.rms_norm_forward.default, (*leaves, EPSILON, True))
    _, stream, rstd = ops.rms_norm_forward(x, residual, weight, EPSILON, True)
    for dstream in (residual, None):
        operands = (x, dstream, stream, weight, rstd, True)
        torch.library.opcheck(ops.rms_norm_backward.default, operands)


@all_kernels
def test_gradients_of_weights_do_not_depend_on_threads(namespace: str, device: str) -> None:
    ops = getattr(torch.ops, namespace)
    x, weight, dy = (t.float().to(device) for t in inputs_of((150, 72)))
    _, _, rstd = ops.rms_norm_forward(x, None, weight, EPSILON, False)
    assert_sum_ignores_threads(lambda: ops.rms_norm_backward(dy, None, x, weight, rstd, False)[1])


@all_kernels
def test_kernel_messages(namespace: str, device: str) -> None:
    forward = getattr(torch.ops, namespace).rms_norm_forward
    x, weight = torch.zeros(2, 3, 4, device=device), torch.zeros(4, device=device)
    cases = [
        ((x[..., :0], None, weight), "must have a last dim with elements to normalise."),
        ((x, x[:1], weight), "residual [1, 3, 4] must have the shape of x [2, 3, 4]."),
        ((x, x.half(), weight), "residual and x must have the same dtype."),
        ((x, None, weight[:3]), "weight [3] must have the size of the last dim of x"),
        ((x, None, weight.half()), "weight and x must have the same dtype."),
        ((x.double(), None, weight.double()), "x must be float32, float16 or bfloat16."),
    ]
    for operands, message in cases:
        with pytest.raises(RuntimeError) as caught:
            forward(*operands, EPSILON, False)
        assert message in str(caught.value)


@plain_implementations
def test_gradients_against_finite_differences(implementation: str) -> None:
    inputs = [t.requires_grad_() for t in random_inputs((3, 2, 7), (7,), (3, 2, 7))]
    op, _ = with_residual(implementation, zero_centred=True)
    assert torch.autograd.gradcheck(op, inputs)


def test_reference_matches_torch() -> None:
    x, weight_H = random_inputs((4, 9), (9,))
    expected = torch.nn.functional.rms_norm(x, (9,), weight_H, EPSILON)
    torch.testing.assert_close(
        rms_norm_reference(x, None, weight_H, NormOptions(EPSILON, False))[0], expected
    )


def test_only_wanted_gradients_are_returned() -> None:
    x, weight_H = random_inputs((4, 9), (9,))
    rms_norm(x, weight_H.requires_grad_(), EPSILON).sum().backward()
    assert weight_H.grad is not None
    with pytest.raises(RuntimeError, match="does not require grad"):
        rms_norm(x, weight_H.detach(), EPSILON).sum().backward()
