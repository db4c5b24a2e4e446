"""rotary against complex multiplication, and the properties that define it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roots.errors import RootsError
from roots.ops import rotary, rotary_table
from roots.ops.rotary import rotary_reference
from tests.ops.accuracy import (
    all_dtypes,
    all_implementations,
    assert_as_accurate,
    assert_equal_in_float64,
    both_strides,
    random_inputs,
)


def formula(x_BTND: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Plain torch in the dtype of x: pairs (r, r + R) rotated, the rest appended."""
    cos, sin = cos[..., None, :].to(x_BTND.dtype), sin[..., None, :].to(x_BTND.dtype)
    half = cos.shape[-1]
    rotated, kept = x_BTND[..., : 2 * half], x_BTND[..., 2 * half :]
    first, second = rotated.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos, kept), dim=-1)


@all_dtypes
@all_implementations
@both_strides
@pytest.mark.parametrize("shape", [(2, 7, 3, 40), (1, 1, 6, 64), (3, 33, 1, 16)], ids=str)
@pytest.mark.parametrize("fraction", [1.0, 0.25], ids=["whole", "partial"])
@pytest.mark.parametrize("per_row", [False, True], ids=["shared", "per_row"])
def test_rotary_is_as_accurate_as_the_baseline(
    dtype: torch.dtype,
    implementation: str,
    strided: bool,
    shape: tuple[int, ...],
    fraction: float,
    per_row: bool,
) -> None:
    positions = torch.arange(shape[1])
    if per_row:
        positions = positions + 5 * torch.arange(shape[0])[:, None]
    cos, sin = rotary_table(positions, int(shape[-1] * fraction) // 2 * 2)

    def op(x_BTND: Tensor) -> Tensor:
        return rotary(x_BTND, cos, sin, implementation=implementation)

    def baseline(x_BTND: Tensor) -> Tensor:
        return formula(x_BTND, cos, sin)

    assert_as_accurate(op, baseline, random_inputs(shape), dtype, strided=strided)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    rows=st.integers(0, 3),
    tokens=st.integers(1, 9),
    heads=st.integers(1, 3),
    half=st.integers(1, 12),
    rest=st.integers(0, 5),
)
def test_rotary_of_any_shape(rows: int, tokens: int, heads: int, half: int, rest: int) -> None:
    cos, sin = rotary_table(torch.arange(tokens), 2 * half)
    inputs = random_inputs((rows, tokens, heads, 2 * half + rest))
    assert_equal_in_float64(lambda x: rotary(x, cos, sin), lambda x: formula(x, cos, sin), inputs)


def test_rotary_is_multiplication_by_a_complex_unit() -> None:
    (x_BTND,) = random_inputs((2, 5, 3, 8))
    angles_TR = torch.arange(5)[:, None] * 10000.0 ** (-torch.arange(4).double() / 4)
    units_T1R = torch.polar(torch.ones_like(angles_TR), angles_TR)[:, None]
    turned = torch.complex(x_BTND[..., :4], x_BTND[..., 4:]) * units_T1R
    expected = torch.cat((turned.real, turned.imag), dim=-1)
    actual = rotary(x_BTND, *rotary_table(torch.arange(5), 8))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)  # tables are fp32


@all_implementations
def test_scores_depend_on_the_distance_only(implementation: str) -> None:
    """q at t and k at s give the score of q at t + 1000 and k at s + 1000."""
    q_BTND, k_BTND = random_inputs((1, 6, 2, 40), (1, 6, 2, 40))
    scores = []
    for start in (0, 1000):
        table = rotary_table(torch.arange(start, start + 6), 40)
        q, k = (rotary(x, *table, implementation=implementation) for x in (q_BTND, k_BTND))
        scores.append(torch.einsum("btnd,bsnd->bnts", q, k))
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=1e-5)  # tables are fp32
    assert (scores[0] - torch.einsum("btnd,bsnd->bnts", q_BTND, k_BTND)).abs().max() > 0.1


@all_implementations
def test_partial_rotary_keeps_the_other_dims_bit_for_bit(implementation: str) -> None:
    x_BTND = random_inputs((2, 5, 3, 40))[0].to(torch.bfloat16)
    cos, sin = rotary_table(torch.arange(1, 6), 16)
    y_BTND = rotary(x_BTND, cos, sin, implementation=implementation)
    assert torch.equal(y_BTND[..., 16:], x_BTND[..., 16:])
    assert not torch.equal(y_BTND[..., :16], x_BTND[..., :16])


def test_table_is_exact_at_large_positions() -> None:
    """fp32 angles would be wrong in the third digit at position 100,000."""
    position = 100_003
    cos, sin = rotary_table(torch.tensor([position]), 64)
    angles_R = position * 10000.0 ** (-torch.arange(0, 64, 2).double() / 64)
    assert (cos[0].double() - angles_R.cos()).abs().max() < 1e-7
    assert (sin[0].double() - angles_R.sin()).abs().max() < 1e-7
    assert cos.dtype == sin.dtype == torch.float32
    assert cos.shape == (1, 32)


def test_table_of_rows_equals_tables_of_each_row() -> None:
    positions_BT = torch.tensor([[0, 1, 2], [7, 0, 1]])
    cos_BTR, sin_BTR = rotary_table(positions_BT, 8, base=500.0)
    for row in range(2):
        cos_TR, sin_TR = rotary_table(positions_BT[row], 8, base=500.0)
        assert torch.equal(cos_BTR[row], cos_TR)
        assert torch.equal(sin_BTR[row], sin_TR)


@pytest.mark.parametrize("implementation", ["torch", "reference"])
def test_gradients_against_finite_differences(implementation: str) -> None:
    cos, sin = (x.double() for x in rotary_table(torch.arange(3), 4))
    (x_BTND,) = random_inputs((2, 3, 2, 6))
    assert torch.autograd.gradcheck(
        lambda x: rotary(x, cos, sin, implementation=implementation), x_BTND.requires_grad_()
    )
    assert torch.autograd.gradcheck(
        lambda x: rotary_reference(x, cos[:, None], sin[:, None]), x_BTND.requires_grad_()
    )


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(RootsError) as caught:
        rotary_table(torch.arange(3), 7)
    assert str(caught.value) == (
        "rotary_size=7: must be even and at least 2, since dims are rotated in pairs; "
        "change model.rotary_fraction"
    )
    with pytest.raises(RootsError) as caught:
        rotary(torch.zeros(1, 3, 1, 6), *rotary_table(torch.arange(3), 8))
    assert str(caught.value) == (
        "head size=6: must be at least the 8 dims that the table rotates; "
        "make a smaller rotary table"
    )
