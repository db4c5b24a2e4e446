"""rotary against complex multiplication, and the properties that define it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roots.errors import RootsError
from roots.ops import rotary, rotary_, rotary_table
from roots.ops.rotary import Turn, rotary_reference
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


def formula(x_BTND: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """Plain torch in the dtype of x: pairs rotated, the rest appended."""
    cos, sin = cos[..., None, :].to(x_BTND.dtype), sin[..., None, :].to(x_BTND.dtype)
    half = cos.shape[-1]
    rotated, kept = x_BTND[..., : 2 * half], x_BTND[..., 2 * half :]
    if interleaved:
        first, second = rotated.unflatten(-1, (half, 2)).unbind(-1)
        turned = torch.stack((first * cos - second * sin, first * sin + second * cos), -1)
        return torch.cat((turned.flatten(-2), kept), dim=-1)
    first, second = rotated.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos, kept), dim=-1)


both_pairings = pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "neighbours"])


@all_dtypes
@all_implementations
@both_strides
@both_pairings
@pytest.mark.parametrize("shape", [(2, 7, 3, 40), (1, 1, 6, 64), (3, 33, 1, 16)], ids=str)
@pytest.mark.parametrize("fraction", [1.0, 0.25], ids=["whole", "partial"])
@pytest.mark.parametrize("table", ["shared", "per_row", "positions"])
def test_rotary_is_as_accurate_as_the_baseline(
    dtype: torch.dtype,
    implementation: str,
    device: str,
    strided: bool,
    interleaved: bool,
    shape: tuple[int, ...],
    fraction: float,
    table: str,
) -> None:
    positions = torch.arange(shape[1], device=device)
    if table != "shared":
        positions = positions + 5 * torch.arange(shape[0], device=device)[:, None]
    rotary_size = int(shape[-1] * fraction) // 2 * 2
    cos, sin = rotary_table(positions, rotary_size)
    whole = rotary_table(torch.arange(100, device=device), rotary_size)

    def op(x_BTND: Tensor) -> Tensor:
        options = {"interleaved": interleaved, "implementation": implementation}
        if table == "positions":
            return rotary(x_BTND, *whole, positions_BT=positions, **options)
        return rotary(x_BTND, cos, sin, **options)

    def baseline(x_BTND: Tensor) -> Tensor:
        return formula(x_BTND, cos, sin, interleaved)

    inputs = random_inputs(shape)
    assert_as_accurate(op, baseline, inputs, dtype, strided=strided, device=device)


@all_dtypes
@all_implementations
@both_pairings
@pytest.mark.parametrize("half", [4, 8, 11])
def test_heads_of_a_fused_projection(
    dtype: torch.dtype, implementation: str, device: str, interleaved: bool, half: int
) -> None:
    """How the models call it: q and k are views of one projection, read without a copy."""
    cos, sin = rotary_table(torch.arange(5, device=device), 2 * half)

    def op(qkv_BTr: Tensor) -> Tensor:
        heads_BTND = qkv_BTr.unflatten(-1, (-1, 24))
        parts = heads_BTND.split([3, 1, 1], dim=2)
        turned = [
            rotary(x, cos, sin, interleaved=interleaved, implementation=implementation)
            for x in parts[:2]
        ]
        return torch.cat((*turned, parts[2]), dim=2)

    def baseline(qkv_BTr: Tensor) -> Tensor:
        parts = qkv_BTr.unflatten(-1, (-1, 24)).split([3, 1, 1], dim=2)
        turned = [formula(x, cos, sin, interleaved) for x in parts[:2]]
        return torch.cat((*turned, parts[2]), dim=2)

    assert_as_accurate(op, baseline, random_inputs((2, 5, 5 * 24)), dtype, device=device)


@all_dtypes
@all_implementations
@both_pairings
@pytest.mark.parametrize("with_positions", [False, True], ids=["plain", "positions"])
def test_in_place_equals_out_of_place(
    dtype: torch.dtype, implementation: str, device: str, interleaved: bool, with_positions: bool
) -> None:
    cos, sin = rotary_table(torch.arange(9, device=device), 16)
    positions_BT = torch.tensor([[3, 4, 5, 6, 7], [8, 0, 1, 2, 3]], device=device)
    options = {
        "positions_BT": positions_BT if with_positions else None,
        "interleaved": interleaved,
        "implementation": implementation,
    }
    leaf, dy = (x.to(device, dtype) for x in random_inputs((2, 5, 6, 24), (2, 5, 6, 24)))
    leaf.requires_grad_()
    y = rotary(leaf, cos, sin, **options)
    (expected,) = torch.autograd.grad(y, leaf, dy)
    x = leaf * 1
    assert rotary_(x, cos, sin, **options) is x
    assert torch.equal(x, y)
    (actual,) = torch.autograd.grad(x, leaf, dy)
    assert torch.equal(actual, expected)


@all_implementations
def test_in_place_on_a_part_of_a_tensor(implementation: str, device: str) -> None:
    """The rest of the tensor and its gradient are left alone."""
    cos, sin = rotary_table(torch.arange(5, device=device), 16)
    leaf, dy = (x.to(device, torch.float32) for x in random_inputs((2, 5, 6, 24), (2, 5, 6, 24)))
    leaf.requires_grad_()
    x = leaf * 1
    rotary_(x[:, :, 1:3], cos, sin, implementation=implementation)
    (actual,) = torch.autograd.grad(x, leaf, dy)
    expected = leaf.detach().clone()
    expected[:, :, 1:3] = rotary(leaf[:, :, 1:3], cos, sin, implementation=implementation)
    assert torch.equal(x, expected)
    backward = dy.clone()
    backward[:, :, 1:3] = rotary(dy[:, :, 1:3], cos, -sin, implementation=implementation)
    torch.testing.assert_close(actual, backward)


def test_autograd_forbids_what_it_must() -> None:
    cos, sin = rotary_table(torch.arange(5), 16)
    leaf = torch.ones(2, 5, 6, 16, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf Variable"):
        rotary_(leaf, cos, sin)
    with pytest.raises(RuntimeError, match="multiple views"):
        rotary_((leaf * 1).split(3, dim=2)[0], cos, sin)


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
def test_scores_depend_on_the_distance_only(implementation: str, device: str) -> None:
    """q at t and k at s give the score of q at t + 1000 and k at s + 1000."""
    q_BTND, k_BTND = (x.to(device).float() for x in random_inputs((1, 6, 2, 40), (1, 6, 2, 40)))
    scores = []
    for start in (0, 1000):
        table = rotary_table(torch.arange(start, start + 6, device=device), 40)
        q, k = (rotary(x, *table, implementation=implementation) for x in (q_BTND, k_BTND))
        scores.append(torch.einsum("btnd,bsnd->bnts", q, k))
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=1e-4)  # of sums of 40
    assert (scores[0] - torch.einsum("btnd,bsnd->bnts", q_BTND, k_BTND)).abs().max() > 0.1


@all_implementations
def test_partial_rotary_keeps_the_other_dims_bit_for_bit(implementation: str, device: str) -> None:
    x_BTND = random_inputs((2, 5, 3, 40))[0].to(device, torch.bfloat16)
    cos, sin = rotary_table(torch.arange(1, 6, device=device), 16)
    y_BTND = rotary(x_BTND, cos, sin, implementation=implementation)
    assert torch.equal(y_BTND[..., 16:], x_BTND[..., 16:])
    assert not torch.equal(y_BTND[..., :16], x_BTND[..., :16])


@plain_implementations
@both_pairings
def test_gradients_against_finite_differences(implementation: str, interleaved: bool) -> None:
    cos, sin = (x.double() for x in rotary_table(torch.arange(3), 4))
    (x_BTND,) = random_inputs((2, 3, 2, 6))
    options = {"interleaved": interleaved, "implementation": implementation}
    assert torch.autograd.gradcheck(
        lambda x: rotary(x, cos, sin, **options), x_BTND.requires_grad_()
    )
    assert torch.autograd.gradcheck(
        lambda x: rotary_(x * 1, cos, sin, **options), x_BTND.requires_grad_()
    )
    turn = Turn(cos, sin, torch.tensor([[0, 1, 2], [2, 2, 0]]), interleaved)
    assert torch.autograd.gradcheck(lambda x: rotary_reference(x, turn), x_BTND.requires_grad_())


@all_kernels
@both_pairings
def test_opcheck(namespace: str, device: str, interleaved: bool) -> None:
    ops = getattr(torch.ops, namespace)
    (x,) = (x.to(device, torch.float32) for x in random_inputs((2, 5, 3, 24)))
    cos, sin = rotary_table(torch.arange(9, device=device), 16)
    positions = torch.randint(0, 9, (2, 5), device=device)
    for tables in ((cos, sin, positions), (cos[:5], sin[:5], None)):
        for inverse in (False, True):
            turn = (*tables, interleaved, inverse)
            torch.library.opcheck(ops.rotary.default, (x.clone().requires_grad_(), *turn))
            torch.library.opcheck(ops.rotary.default, (x[:, :, 1:].requires_grad_(), *turn))
            torch.library.opcheck(ops.rotary_.default, (x.clone(), *turn))


@all_kernels
def test_distances_beyond_32_bits(namespace: str, device: str) -> None:
    """Rows 2^31 elements apart, of memory that is never touched in between."""
    ops = getattr(torch.ops, namespace)
    far = 2**31 + 64
    x = torch.empty(far + 4096, dtype=torch.bfloat16, device=device)
    x = x.as_strided((2, 3, 2, 16), (far, 32, 16, 1))
    x.copy_(random_inputs((2, 3, 2, 16))[0])
    cos, sin = rotary_table(torch.arange(3, device=device), 16)
    y = ops.rotary(x.clone(), cos, sin, None, False, False)
    assert torch.equal(ops.rotary(x, cos, sin, None, False, False), y)
    ops.rotary_(x, cos, sin, None, False, False)
    assert torch.equal(x, y)


@all_implementations
@pytest.mark.parametrize("shape", [(0, 4, 2, 8), (2, 0, 2, 8), (2, 4, 0, 8)], ids=str)
def test_empty_tensors(implementation: str, device: str, shape: tuple[int, ...]) -> None:
    x_BTND = torch.ones(shape, device=device, requires_grad=True)
    cos, sin = rotary_table(torch.arange(4, device=device), 8)
    y_BTND = rotary(x_BTND, cos, sin, implementation=implementation)
    y_BTND.sum().backward()
    assert y_BTND.shape == shape
    assert x_BTND.grad is not None
    assert x_BTND.grad.shape == shape


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 3),
    tokens=st.integers(1, 9),
    heads=st.integers(1, 3),
    half=st.integers(1, 70),
    rest=st.integers(0, 20),
    interleaved=st.booleans(),
    seed=st.integers(0, 99),
)
def test_kernel_of_any_shape(
    rows: int, tokens: int, heads: int, half: int, rest: int, interleaved: bool, seed: int
) -> None:
    """Every length of the rest that no vector fills."""
    (x_BTND,) = random_inputs((rows, tokens, heads, 2 * half + rest), seed=seed)
    x_BTND = x_BTND.bfloat16() if seed % 2 else x_BTND.float()
    cos, sin = rotary_table(torch.arange(20), 2 * half)
    positions_BT = torch.randint(0, 20, (rows, tokens), generator=torch.manual_seed(seed))
    options = {"positions_BT": positions_BT, "interleaved": interleaved}
    expected = rotary(x_BTND, cos, sin, implementation="reference", **options)
    torch.testing.assert_close(rotary(x_BTND, cos, sin, **options), expected)


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(RootsError) as caught:
        rotary(torch.zeros(1, 3, 1, 6), *rotary_table(torch.arange(3), 8))
    assert str(caught.value) == (
        "head size=6: must be at least the 8 dims that the table rotates; "
        "make a smaller rotary table"
    )


def test_tables_and_positions_that_do_not_fit_are_refused() -> None:
    x_BTND = torch.zeros(2, 3, 1, 8)
    cos, sin = rotary_table(torch.arange(3), 8)
    rule = "must both have a row for every token of x [2, 3, 1, 8]"
    fix = "make the rotary table for these positions"
    for table, shapes in (
        ((cos[:2], sin[:2]), "[[2, 4], [2, 4]]"),
        ((cos, sin[:2]), "[[3, 4], [2, 4]]"),
        ((cos[None], sin[None]), "[[1, 3, 4], [1, 3, 4]]"),
    ):
        with pytest.raises(RootsError) as caught:
            rotary(x_BTND, *table)
        assert str(caught.value) == f"cos, sin={shapes}: {rule}; {fix}"
    for positions in (torch.zeros(3, dtype=torch.int64), torch.zeros(2, 3)):
        with pytest.raises(RootsError) as caught:
            rotary(x_BTND, cos, sin, positions_BT=positions)
        assert str(caught.value) == (
            f"positions='{positions.dtype} {list(positions.shape)}': "
            "must be int64 of shape [2, 3], one for every token; expand them over the rows"
        )


@all_kernels
def test_positions_outside_of_the_table(namespace: str, device: str) -> None:
    """A sentence on a CPU; on a GPU, where values are not looked at, the token becomes NaN."""
    ops = getattr(torch.ops, namespace)
    x = torch.ones(1, 3, 2, 8, device=device)
    cos, sin = rotary_table(torch.arange(3, device=device), 8)
    for wrong in (3, -1):
        positions = torch.tensor([[0, wrong, 2]], device=device)
        if device == "cuda":
            y = ops.rotary(x, cos, sin, positions, False, False)
            assert y[:, 1].isnan().all()
            assert y[:, ::2].isfinite().all()
            continue
        with pytest.raises(RuntimeError) as caught:
            ops.rotary(x, cos, sin, positions, False, False)
        assert f"positions hold {wrong}, but the tables have 3 rows." in str(caught.value)


@all_kernels
def test_kernel_messages(namespace: str, device: str) -> None:
    ops = getattr(torch.ops, namespace)
    x = torch.zeros(2, 3, 1, 8, device=device)
    cos, sin = rotary_table(torch.arange(3, device=device), 8)
    positions = torch.zeros(2, 3, dtype=torch.int64, device=device)
    cases = [
        (
            lambda: ops.rotary(x[0], cos, sin, None, False, False),
            "x [3, 1, 8] must have 4 dims: rows, tokens, heads, head size.",
        ),
        (
            lambda: ops.rotary(x, cos.double(), sin.double(), None, False, False),
            "cos must be float32.",
        ),
        (
            lambda: ops.rotary(x, cos, sin[:2], None, False, False),
            "sin [2, 4] must have the shape of cos [3, 4].",
        ),
        (
            lambda: ops.rotary(x[..., :6], cos, sin, None, False, False),
            "cos [3, 4] must have at most half as many angles as "
            "x [2, 3, 1, 6] has dims in a head.",
        ),
        (
            lambda: ops.rotary(x, cos[:2], sin[:2], None, False, False),
            "cos [2, 4] must have at least a row for each of the tokens of x [2, 3, 1, 8].",
        ),
        (
            lambda: ops.rotary(x, cos[None], sin[None], None, False, False),
            "cos [1, 3, 4] must have a row for every token of x [2, 3, 1, 8].",
        ),
        (
            lambda: ops.rotary(x, cos[None], sin[None], positions, False, False),
            "cos [1, 3, 4] must have 2 dims if there are positions.",
        ),
        (
            lambda: ops.rotary(x, cos, sin, positions[:, :2], False, False),
            "positions [2, 2] must have one number for every token of x [2, 3, 1, 8].",
        ),
        (
            lambda: ops.rotary(x, cos, sin, positions.int(), False, False),
            "positions must be int64.",
        ),
        (
            lambda: ops.rotary(x.double(), cos, sin, None, False, False),
            "x must be float32, float16 or bfloat16.",
        ),
        (
            lambda: ops.rotary_(x.expand(2, 3, 4, 8), cos, sin, None, False, False),
            "x [2, 3, 4, 8] is expanded along dim 2 and cannot be rotated in place.",
        ),
        (
            lambda: ops.rotary_(torch.cat((x, x), -1)[..., ::2], cos, sin, None, False, False),
            "the dims of a head of x must lie side by side to be rotated in place.",
        ),
    ]
    for call, message in cases:
        with pytest.raises(RuntimeError) as caught:
            call()
        assert message in str(caught.value)
