"""attention against the formula, over masks, lengths, heads, documents and decoding.

Legend: B rows, T queries, S keys, N heads, K key heads, D head size.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roots.errors import RootsError
from roots.ops import KeyRanges, attention
from tests.ops.accuracy import (
    all_dtypes,
    all_implementations,
    assert_as_accurate,
    assert_equal_in_float64,
    both_strides,
    plain_implementations,
)
from tests.ops.attention_formula import MASKS, Case, Mask, formula, key_ranges, operands, visible

# Enough rows that the largest error of the baseline is no matter of luck.
CASES = [
    Case(4, 7, 7, 3, 3, 40),
    Case(2, 33, 33, 4, 2, 64),
    Case(32, 1, 19, 6, 1, 40),
    Case(8, 5, 12, 4, 2, 32),
    Case(6, 5, 5, 4, 2, 128),
    Case(1, 64, 130, 2, 1, 72),
    Case(1, 100, 17, 2, 2, 256),
]


def names_of(cases: list[Case]) -> list[str]:
    return ["x".join(map(str, case)) for case in cases]


case_names = pytest.mark.parametrize("case", CASES, ids=names_of(CASES))


def assert_follows_rule(
    case: Case,
    mask: Mask,
    dtype: torch.dtype,
    implementation: str,
    device: str,
    *,
    strided: bool = False,
    with_lse: bool = False,
) -> None:
    """o, and lse if wanted, with all gradients."""
    if implementation == "torch_sdpa" and dtype == torch.float32 and device == "cpu":
        pytest.skip("torch's kernel takes an exponential of 20 units in the last place here")
    ranges = key_ranges(case, mask)
    visible_BTS = visible(case, mask, ranges)
    assert visible_BTS.any(-1).all()

    def op(q_BTND: Tensor, k_BSKD: Tensor, v_BSKD: Tensor) -> object:
        return attention(
            q_BTND,
            k_BSKD,
            v_BSKD,
            causal=mask.causal,
            window=mask.window,
            key_ranges=None if ranges is None else KeyRanges(ranges.bounds_BT2.to(device)),
            return_lse=with_lse,  # type: ignore[call-overload]
            implementation=implementation,
        )

    def baseline(q_BTND: Tensor, k_BSKD: Tensor, v_BSKD: Tensor) -> object:
        result = formula(q_BTND, k_BSKD, v_BSKD, visible_BTS)
        return result if with_lse else result[0]

    assert_as_accurate(op, baseline, operands(case), dtype, strided=strided, device=device)


@all_dtypes
@all_implementations
@case_names
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_attention_is_as_accurate_as_the_baseline(
    dtype: torch.dtype, implementation: str, device: str, case: Case, causal: bool
) -> None:
    if causal and case.S < case.T:
        pytest.skip("a causal mask needs as many keys as queries")
    assert_follows_rule(case, Mask(causal), dtype, implementation, device)


@all_dtypes
@all_implementations
@pytest.mark.parametrize("mask", list(MASKS.values())[2:], ids=list(MASKS)[2:])
@pytest.mark.parametrize("case", [CASES[1], CASES[5]], ids=names_of([CASES[1], CASES[5]]))
def test_windows_and_ranges_are_as_accurate_as_the_baseline(
    dtype: torch.dtype, implementation: str, device: str, case: Case, mask: Mask
) -> None:
    assert_follows_rule(case, mask, dtype, implementation, device)


@all_dtypes
@all_implementations
@both_strides
def test_layouts_of_the_operands_are_as_accurate_as_the_baseline(
    dtype: torch.dtype, implementation: str, device: str, strided: bool
) -> None:
    assert_follows_rule(CASES[3], Mask(True), dtype, implementation, device, strided=strided)


@all_dtypes
@all_implementations
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_log_sum_exp_is_as_accurate_as_the_baseline(
    dtype: torch.dtype, implementation: str, device: str, mask: Mask
) -> None:
    if implementation == "torch_sdpa":
        pytest.skip("torch's scaled_dot_product_attention returns no log-sum-exp")
    assert_follows_rule(CASES[1], mask, dtype, implementation, device, with_lse=True)


@all_implementations
def test_gradient_of_the_log_sum_exp_alone(implementation: str, device: str) -> None:
    if implementation == "torch_sdpa":
        pytest.skip("torch's scaled_dot_product_attention returns no log-sum-exp")
    q, k, v = (x.float().to(device).requires_grad_() for x in operands(Case(2, 9, 9, 4, 2, 32)))
    _, lse_BNT = attention(q, k, v, return_lse=True, implementation=implementation)
    assert lse_BNT.dtype == torch.float32
    expected = attention(q, k, v, return_lse=True, implementation="reference")[1]
    torch.testing.assert_close(lse_BNT, expected, rtol=1e-5, atol=1e-5)
    got, wanted = (torch.autograd.grad(x.sum(), (q, k)) for x in (lse_BNT, expected))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.integers(0, 3),
    queries=st.integers(1, 9),
    past=st.integers(0, 9),
    key_heads=st.integers(1, 3),
    groups=st.integers(1, 3),
    head_size=st.integers(1, 40),
    mask=st.sampled_from(sorted(MASKS)),
    implementation=st.sampled_from(["torch_sdpa", "reference"]),
)
def test_attention_of_any_shape(
    rows: int,
    queries: int,
    past: int,
    key_heads: int,
    groups: int,
    head_size: int,
    mask: str,
    implementation: str,
) -> None:
    case = Case(rows, queries, queries + past, key_heads * groups, key_heads, head_size)
    rule = MASKS[mask]
    ranges = key_ranges(case, rule)
    visible_BTS = visible(case, rule, ranges)
    assert_equal_in_float64(
        lambda q, k, v: attention(
            q,
            k,
            v,
            causal=rule.causal,
            window=rule.window,
            key_ranges=ranges,
            implementation=implementation,
        ),
        lambda q, k, v: formula(q, k, v, visible_BTS)[0],
        operands(case),
    )


@all_dtypes
@all_implementations
def test_queries_that_see_nothing_give_zeros(
    dtype: torch.dtype, implementation: str, device: str
) -> None:
    """o = 0, lse = -inf and no gradients; the others as if they were alone."""
    case = Case(2, 33, 33, 4, 2, 32)
    mask = Mask(causal=True, ranges=True)
    ranges = key_ranges(case, mask, blind=True, seed=3)
    assert ranges is not None
    visible_BTS = visible(case, mask, ranges).to(device)
    blind_BT = ~visible_BTS.any(-1)
    assert 5 < blind_BT.sum() < 60
    leaves = [x.to(device, dtype).requires_grad_() for x in operands(case)]
    with_lse = implementation != "torch_sdpa"
    bounds_BT2 = ranges.bounds_BT2.to(device)
    result = attention(
        *leaves,
        key_ranges=KeyRanges(bounds_BT2),
        return_lse=with_lse,  # type: ignore[call-overload]
        implementation=implementation,
    )
    o_BTND = result[0] if with_lse else result
    assert not o_BTND[blind_BT].any()
    assert o_BTND[~blind_BT].any(-1).all()
    if with_lse:
        lse_BTN = result[1].transpose(1, 2)
        assert (lse_BTN[blind_BT] == -math.inf).all()
        assert lse_BTN[~blind_BT].isfinite().all()
    dq, dk, dv = torch.autograd.grad(o_BTND.float().square().sum(), leaves)
    assert not dq[blind_BT].any()
    assert all(grad.isfinite().all() for grad in (dq, dk, dv))
    unseen_BS = ~visible_BTS.any(1)
    assert not dk[unseen_BS].any()
    assert not dv[unseen_BS].any()


@all_implementations
@pytest.mark.parametrize("rows, queries, keys", [(0, 3, 3), (2, 0, 3), (2, 3, 0), (2, 0, 0)])
def test_nothing_in_nothing_out(
    implementation: str, device: str, rows: int, queries: int, keys: int
) -> None:
    q = torch.ones(rows, queries, 4, 32, device=device, requires_grad=True)
    k = torch.ones(rows, keys, 2, 32, device=device, requires_grad=True)
    o_BTND = attention(q, k, k, causal=False, implementation=implementation)
    assert o_BTND.shape == q.shape
    assert not o_BTND.any()
    dq, dk = torch.autograd.grad(o_BTND.sum(), (q, k))
    assert dq.shape == q.shape
    assert dk.shape == k.shape
    assert not dq.any()
    assert not dk.any()


@all_dtypes
@all_implementations
def test_documents_do_not_leak(dtype: torch.dtype, implementation: str, device: str) -> None:
    """Document A = tokens [0, 4), B = [4, 11). A is replaced; B is bit-equal, with gradients."""
    case = Case(2, 11, 11, 4, 2, 40)
    starts_BT = torch.tensor([0] * 4 + [4] * 7, device=device).expand(2, 11)

    def run(seed: int) -> list[Tensor]:
        inputs = [x.to(dtype) for x in operands(case)]
        for tensor, other in zip(inputs, operands(case, seed), strict=True):
            tensor[:, :4] = 5.0 * other[:, :4].to(dtype)
        leaves = [x.to(device).requires_grad_() for x in inputs]
        o_BTND = attention(*leaves, document_starts_BT=starts_BT, implementation=implementation)[
            :, 4:
        ]
        gradients = torch.autograd.grad(o_BTND.float().square().sum(), leaves)
        assert all(not gradient[:, :4].any() for gradient in gradients)
        return [o_BTND.detach(), *(gradient[:, 4:] for gradient in gradients)]

    first, second = run(seed=1), run(seed=2)
    assert all(torch.equal(left, right) for left, right in zip(first, second, strict=True))


@all_implementations
def test_packed_documents_equal_separate_ones(implementation: str, device: str) -> None:
    q, k, v = (x.float().to(device) for x in operands(Case(1, 11, 11, 4, 2, 32)))
    starts_BT = torch.tensor([[0] * 4 + [4] * 7], device=device)
    packed = attention(q, k, v, document_starts_BT=starts_BT, implementation=implementation)
    for part in (slice(0, 4), slice(4, 11)):
        alone = attention(q[:, part], k[:, part], v[:, part], implementation=implementation)
        torch.testing.assert_close(packed[:, part], alone, rtol=1e-5, atol=1e-6)


@all_implementations
@pytest.mark.parametrize("chunks", [[1] * 9, [4, 1, 4], [1, 8]], ids=str)
@pytest.mark.parametrize("padding", [0, 3], ids=["no_padding", "left_padding"])
def test_decoding_equals_the_whole_sequence(
    implementation: str, device: str, chunks: list[int], padding: int
) -> None:
    """Queries come in chunks, keys from a cache; left padding is a document that starts later."""
    q, k, v = (x.float().to(device) for x in operands(Case(2, 9, 9, 4, 2, 32)))
    whole = attention(q, k, v, implementation=implementation)
    junk = torch.full((2, padding, 2, 32), 1e3, device=device)
    cached_k, cached_v = (torch.cat((junk, x), dim=1) for x in (k, v))
    starts_B1 = torch.full((2, 1), padding, device=device)
    done = 0
    for count in chunks:
        stop = done + count
        o_BTND = attention(
            q[:, done:stop],
            cached_k[:, : padding + stop],
            cached_v[:, : padding + stop],
            document_starts_BT=starts_B1.expand(2, count) if padding else None,
            implementation=implementation,
        )
        torch.testing.assert_close(o_BTND, whole[:, done:stop], rtol=1e-5, atol=1e-6)
        done = stop


@all_implementations
@pytest.mark.parametrize("scale", [0.7, -0.3, 0.0])
def test_scale_is_applied(implementation: str, device: str, scale: float) -> None:
    case = Case(1, 5, 5, 2, 2, 32)
    if implementation == "torch_sdpa" and scale <= 0:
        pytest.skip("torch's kernel masks before it scales")
    q, k, v = (x.float().to(device) for x in operands(case))
    by_scale = attention(q, k, v, scale=scale, implementation=implementation)
    expected, _ = formula(q * scale * math.sqrt(32), k, v, visible(case, Mask(True)))
    torch.testing.assert_close(by_scale, expected, rtol=1e-5, atol=1e-6)


@all_implementations
def test_large_scores_do_not_overflow(implementation: str, device: str) -> None:
    """Scores of 1e4 times the head size: the softmax subtracts its maximum."""
    case = Case(1, 9, 9, 2, 2, 64)
    leaves = [(100.0 * x.float()).to(device).requires_grad_() for x in operands(case)]
    o_BTND = attention(*leaves, implementation=implementation)
    assert o_BTND.isfinite().all()
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(o_BTND.sum(), leaves))


@all_implementations
def test_views_of_one_projection(implementation: str, device: str) -> None:
    """q, k, v as slices of a fused projection, as the models call it."""
    qkv_BTr = torch.randn(2, 8, 192, generator=torch.Generator().manual_seed(0)).to(device)
    q, k, v = (part.unflatten(-1, (2, 32)) for part in qkv_BTr.chunk(3, dim=-1))
    expected = attention(*(x.contiguous() for x in (q, k, v)), implementation=implementation)
    assert torch.equal(attention(q, k, v, implementation=implementation), expected)


@plain_implementations
def test_float64_is_not_for_the_kernels(implementation: str) -> None:
    q = torch.zeros(1, 2, 2, 32, dtype=torch.float64)
    assert attention(q, q, q, implementation=implementation).dtype == torch.float64
    with pytest.raises(RootsError, match="not for float64"):
        attention(q, q, q, implementation="roots")


def test_gradients_of_the_reference() -> None:
    case = Case(2, 4, 5, 4, 2, 4)
    ranges = key_ranges(case, Mask(ranges=True), blind=True)
    assert torch.autograd.gradcheck(
        lambda q, k, v: attention(q, k, v, key_ranges=ranges, implementation="reference"),
        [x.requires_grad_() for x in operands(case)],
    )


def test_bad_calls_are_refused() -> None:
    def message(q: Tensor, k: Tensor, **options: object) -> str:
        with pytest.raises(RootsError) as caught:
            attention(q, k, k, **options)  # type: ignore[call-overload]
        return str(caught.value)

    q_BTND = torch.zeros(1, 4, 6, 8)
    starts_BT = torch.zeros(1, 4, dtype=torch.int64)
    ranges = KeyRanges.of_documents(starts_BT, 4)
    complete = KeyRanges(ranges.bounds_BT2, complete=True)
    assert message(q_BTND, torch.zeros(1, 4, 4, 8)) == (
        "number of query heads=6: must be a multiple of the 4 key heads; change num_kv_heads"
    )
    assert message(q_BTND, torch.zeros(1, 3, 6, 8)) == (
        "number of keys=3: must be at least the 4 queries under a causal mask; pass causal=False"
    )
    assert message(q_BTND, q_BTND, scale=-1.0, implementation="torch_sdpa") == (
        "ops.attention='torch_sdpa': cannot run here: torch's kernel masks before it scales, so a "
        'scale that is not positive shows what is masked; use "auto"'
    )
    assert message(q_BTND, q_BTND, window=-1) == ("window=-1: must not be negative; use 0 for none")
    assert message(q_BTND, q_BTND, key_ranges=ranges, document_starts_BT=starts_BT) == (
        "key_ranges: is given together with document_starts_BT; pass one of them"
    )
    assert message(q_BTND, q_BTND, key_ranges=complete, window=2) == (
        "window=2: is given together with complete key ranges; pass it to KeyRanges.of_lengths"
    )
    assert message(q_BTND[:, :3], q_BTND, key_ranges=ranges) == (
        "key_ranges=[1, 4]: must be for the [1, 3] rows and queries of q; build them for this call"
    )
