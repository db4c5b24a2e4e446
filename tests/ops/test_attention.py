"""attention against the formula, over heads, lengths, documents, masks and decoding.

Legend: B rows, T queries, S keys, N heads, K key heads, D head size.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roots.errors import RootsError
from roots.ops import KeyRanges, attention
from tests.ops.accuracy import (
    all_dtypes,
    assert_as_accurate,
    assert_equal_in_float64,
    both_strides,
    random_inputs,
)

both_implementations = pytest.mark.parametrize("implementation", ["torch_sdpa", "reference"])


class Case(NamedTuple):
    """Sizes by the letters of the legend."""

    B: int
    T: int
    S: int
    N: int
    K: int
    D: int


# Enough rows that the largest error of the baseline is no matter of luck.
CASES = [
    Case(4, 7, 7, 3, 3, 40),
    Case(2, 33, 33, 4, 2, 64),
    Case(32, 1, 19, 6, 1, 40),
    Case(8, 5, 12, 4, 2, 16),
    Case(6, 5, 5, 4, 2, 128),
]
case_names = pytest.mark.parametrize("case", CASES, ids=lambda case: "x".join(map(str, case)))


def visible(case: Case, causal: bool, starts_BT: Tensor | None) -> Tensor:
    """Brute force: may query t of row b see key s?  [B, T, S]."""
    table = torch.zeros(case.B, case.T, case.S, dtype=torch.bool)
    for b in range(case.B):
        for t in range(case.T):
            for s in range(case.S):
                first = 0 if starts_BT is None else int(starts_BT[b, t])
                if causal:
                    table[b, t, s] = first <= s <= t + case.S - case.T
                else:
                    table[b, t, s] = starts_BT is None or first == int(starts_BT[b, s])
    return table


def document_starts(case: Case, seed: int = 0) -> Tensor:
    """Random documents, as key positions of the queries [B, T]."""
    generator = torch.Generator().manual_seed(seed)
    begins_BS = torch.rand(case.B, case.S, generator=generator) < 0.3
    begins_BS[:, 0] = True
    positions_BS = torch.arange(case.S).expand(case.B, case.S)
    starts_BS = torch.where(begins_BS, positions_BS, 0).cummax(dim=1).values
    return starts_BS[:, case.S - case.T :]


class _Formula(torch.autograd.Function):
    """The formula in plain torch of the dtype of q, with the backward pass of every fused kernel.

    That pass takes sum_s(p dp) from the output, as sum_d(o do), instead of from stored weights
    (Dao et al., "FlashAttention", 2022, section 3.1), so its rounding is the one to compare with:
    stored weights give an exact 0 where a query sees a single key.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, visible_BTS: Tensor) -> Tensor:
        scores_BNTS = torch.einsum("btnd,bsnd->bnts", q, k) / math.sqrt(q.shape[-1])
        weights_BNTS = scores_BNTS.masked_fill(~visible_BTS[:, None], -math.inf).softmax(-1)
        o = torch.einsum("bnts,bsnd->btnd", weights_BNTS, v)
        ctx.save_for_backward(q, k, v, weights_BNTS, o)
        return o

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, weights_BNTS, o = ctx.saved_tensors
        (grad_o,) = grads
        shared_BNT1 = (o * grad_o).sum(-1).transpose(1, 2)[..., None]
        grad_weights_BNTS = torch.einsum("btnd,bsnd->bnts", grad_o, v)
        grad_scores = weights_BNTS * (grad_weights_BNTS - shared_BNT1) / math.sqrt(q.shape[-1])
        return (
            torch.einsum("bnts,bsnd->btnd", grad_scores, k),
            torch.einsum("bnts,btnd->bsnd", grad_scores, q),
            torch.einsum("bnts,btnd->bsnd", weights_BNTS, grad_o),
            None,
        )


def formula(q_BTND: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, visible_BTS: Tensor) -> Tensor:
    """Plain torch in the dtype of q."""
    groups = q_BTND.shape[2] // k_BSKD.shape[2]
    k_BSND, v_BSND = (x.repeat_interleave(groups, dim=2) for x in (k_BSKD, v_BSKD))
    o_BTND: Tensor = _Formula.apply(q_BTND, k_BSND, v_BSND, visible_BTS)
    return o_BTND


def operands(case: Case, seed: int = 0) -> list[Tensor]:
    q_shape = (case.B, case.T, case.N, case.D)
    kv_shape = (case.B, case.S, case.K, case.D)
    return random_inputs(q_shape, kv_shape, kv_shape, seed=seed)


@all_dtypes
@both_implementations
@both_strides
@case_names
@pytest.mark.parametrize("documents", [False, True], ids=["one_document", "documents"])
def test_causal_attention_is_as_accurate_as_the_baseline(
    dtype: torch.dtype, implementation: str, strided: bool, case: Case, documents: bool
) -> None:
    starts_BT = document_starts(case) if documents else None
    visible_BTS = visible(case, True, starts_BT)

    def op(q_BTND: Tensor, k_BSKD: Tensor, v_BSKD: Tensor) -> Tensor:
        return attention(
            q_BTND, k_BSKD, v_BSKD, document_starts_BT=starts_BT, implementation=implementation
        )

    def baseline(q_BTND: Tensor, k_BSKD: Tensor, v_BSKD: Tensor) -> Tensor:
        return formula(q_BTND, k_BSKD, v_BSKD, visible_BTS)

    assert_as_accurate(op, baseline, operands(case), dtype, strided=strided)


@all_dtypes
@both_implementations
@case_names
def test_full_attention_is_as_accurate_as_the_baseline(
    dtype: torch.dtype, implementation: str, case: Case
) -> None:
    starts_BT = document_starts(case) if case.S == case.T else None
    visible_BTS = visible(case, False, starts_BT)

    def op(q_BTND: Tensor, k_BSKD: Tensor, v_BSKD: Tensor) -> Tensor:
        return attention(
            q_BTND,
            k_BSKD,
            v_BSKD,
            causal=False,
            document_starts_BT=starts_BT,
            implementation=implementation,
        )

    def baseline(q_BTND: Tensor, k_BSKD: Tensor, v_BSKD: Tensor) -> Tensor:
        return formula(q_BTND, k_BSKD, v_BSKD, visible_BTS)

    assert_as_accurate(op, baseline, operands(case), dtype)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.integers(0, 3),
    queries=st.integers(1, 9),
    past=st.integers(0, 9),
    key_heads=st.integers(1, 3),
    groups=st.integers(1, 3),
    head_size=st.integers(1, 40),
    documents=st.booleans(),
    implementation=st.sampled_from(["torch_sdpa", "reference"]),
)
def test_attention_of_any_shape(
    rows: int,
    queries: int,
    past: int,
    key_heads: int,
    groups: int,
    head_size: int,
    documents: bool,
    implementation: str,
) -> None:
    case = Case(rows, queries, queries + past, key_heads * groups, key_heads, head_size)
    starts_BT = document_starts(case) if documents else None
    visible_BTS = visible(case, True, starts_BT)
    assert_equal_in_float64(
        lambda q, k, v: attention(
            q, k, v, document_starts_BT=starts_BT, implementation=implementation
        ),
        lambda q, k, v: formula(q, k, v, visible_BTS),
        operands(case),
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 3),
    queries=st.integers(1, 9),
    past=st.integers(0, 9),
    seed=st.integers(0, 100),
)
def test_mask_matches_brute_force(rows: int, queries: int, past: int, seed: int) -> None:
    case = Case(rows, queries, queries + past, 1, 1, 1)
    starts_BT = document_starts(case, seed)
    ranges = KeyRanges.of_documents(starts_BT, case.S)
    mask = ranges.additive_mask(case.S, True, 0, torch.bfloat16)
    assert mask.dtype == torch.bfloat16
    assert mask.shape == (rows, 1, queries, queries + past)
    assert torch.equal(mask[:, 0] == 0, visible(case, True, starts_BT))
    assert torch.equal(mask[:, 0] == -math.inf, ~visible(case, True, starts_BT))
    assert ranges.additive_mask(case.S, True, 0, torch.bfloat16) is mask


@both_implementations
def test_shared_ranges_give_what_document_starts_give(implementation: str) -> None:
    case = Case(2, 9, 9, 4, 2, 16)
    q_BTND, k_BSKD, v_BSKD = (x.float() for x in operands(case))
    starts_BT = document_starts(case)
    by_starts = attention(
        q_BTND, k_BSKD, v_BSKD, document_starts_BT=starts_BT, implementation=implementation
    )
    ranges = KeyRanges.of_documents(starts_BT, case.S)
    by_ranges = attention(q_BTND, k_BSKD, v_BSKD, key_ranges=ranges, implementation=implementation)
    assert torch.equal(by_starts, by_ranges)


@all_dtypes
@both_implementations
def test_documents_do_not_leak(dtype: torch.dtype, implementation: str) -> None:
    """Document A = tokens [0, 4), B = [4, 11). A is replaced; B is bit-equal, with gradients."""
    case = Case(2, 11, 11, 4, 2, 40)
    starts_BT = torch.tensor([0] * 4 + [4] * 7).expand(2, 11)

    def run(seed: int) -> list[Tensor]:
        inputs = [x.to(dtype) for x in operands(case)]
        for tensor, other in zip(inputs, operands(case, seed), strict=True):
            tensor[:, :4] = 5.0 * other[:, :4].to(dtype)
        leaves = [x.requires_grad_() for x in inputs]
        o_BTND = attention(*leaves, document_starts_BT=starts_BT, implementation=implementation)[
            :, 4:
        ]
        gradients = torch.autograd.grad(o_BTND.float().square().sum(), leaves)
        assert all(not gradient[:, :4].any() for gradient in gradients)
        return [o_BTND.detach(), *(gradient[:, 4:] for gradient in gradients)]

    first, second = run(seed=1), run(seed=2)
    assert all(torch.equal(left, right) for left, right in zip(first, second, strict=True))


@both_implementations
def test_packed_documents_equal_separate_ones(implementation: str) -> None:
    q_BTND, k_BSKD, v_BSKD = operands(Case(1, 11, 11, 4, 2, 16))
    starts_BT = torch.tensor([[0] * 4 + [4] * 7])
    packed = attention(
        q_BTND, k_BSKD, v_BSKD, document_starts_BT=starts_BT, implementation=implementation
    )
    for part in (slice(0, 4), slice(4, 11)):
        alone = attention(
            q_BTND[:, part], k_BSKD[:, part], v_BSKD[:, part], implementation=implementation
        )
        torch.testing.assert_close(packed[:, part], alone, rtol=1e-12, atol=1e-12)


@both_implementations
@pytest.mark.parametrize("chunks", [[1] * 9, [4, 1, 4], [1, 8]], ids=str)
@pytest.mark.parametrize("padding", [0, 3], ids=["no_padding", "left_padding"])
def test_decoding_equals_the_whole_sequence(
    implementation: str, chunks: list[int], padding: int
) -> None:
    """Queries come in chunks, keys from a cache; left padding is a document that starts later."""
    q_BTND, k_BSKD, v_BSKD = operands(Case(2, 9, 9, 4, 2, 16))
    whole = attention(q_BTND, k_BSKD, v_BSKD, implementation=implementation)
    junk = torch.full((2, padding, 2, 16), 1e3, dtype=torch.float64)
    cached_k, cached_v = (torch.cat((junk, x), dim=1) for x in (k_BSKD, v_BSKD))
    done = 0
    for count in chunks:
        stop = done + count
        o_BTND = attention(
            q_BTND[:, done:stop],
            cached_k[:, : padding + stop],
            cached_v[:, : padding + stop],
            document_starts_BT=torch.full((2, count), padding) if padding else None,
            implementation=implementation,
        )
        torch.testing.assert_close(o_BTND, whole[:, done:stop], rtol=1e-12, atol=1e-12)
        done = stop


@both_implementations
def test_scale_is_applied(implementation: str) -> None:
    q_BTND, k_BSKD, v_BSKD = operands(Case(1, 5, 5, 2, 2, 16))
    by_scale = attention(q_BTND, k_BSKD, v_BSKD, scale=0.7, implementation=implementation)
    expected = formula(
        q_BTND * 0.7 * 4, k_BSKD, v_BSKD, visible(Case(1, 5, 5, 2, 2, 16), True, None)
    )
    torch.testing.assert_close(by_scale, expected, rtol=1e-12, atol=1e-12)


@both_implementations
def test_large_scores_do_not_overflow(implementation: str) -> None:
    """Scores of 1e4 times the head size: the softmax subtracts its maximum."""
    q_BTND, k_BSKD, v_BSKD = (100.0 * x.float() for x in operands(Case(1, 9, 9, 2, 2, 64)))
    o_BTND = attention(q_BTND, k_BSKD, v_BSKD, implementation=implementation)
    assert o_BTND.isfinite().all()


def test_views_of_one_projection_are_not_copied() -> None:
    """q, k, v as slices of a fused projection: the op reads them where they are."""
    qkv_BTr = torch.randn(2, 8, 48, generator=torch.Generator().manual_seed(0))
    q, k, v = (part.unflatten(-1, (2, 8)) for part in qkv_BTr.chunk(3, dim=-1))
    expected = attention(q.contiguous(), k.contiguous(), v.contiguous())
    assert torch.equal(attention(q, k, v), expected)
    assert expected.is_contiguous()


def test_gradients_of_the_reference() -> None:
    case = Case(2, 3, 5, 4, 2, 4)
    starts_BT = document_starts(case)
    assert torch.autograd.gradcheck(
        lambda q, k, v: attention(
            q, k, v, document_starts_BT=starts_BT, implementation="reference"
        ),
        [x.requires_grad_() for x in operands(case)],
    )


def test_bad_shapes_are_refused() -> None:
    def message(q: Tensor, k: Tensor, **options: object) -> str:
        with pytest.raises(RootsError) as caught:
            attention(q, k, k, **options)  # type: ignore[arg-type]
        return str(caught.value)

    q_BTND = torch.zeros(1, 4, 6, 8)
    starts_BT = torch.zeros(1, 4, dtype=torch.int64)
    assert message(q_BTND, torch.zeros(1, 4, 4, 8)) == (
        "number of query heads=6: must be a multiple of the 4 key heads; change num_kv_heads"
    )
    assert message(q_BTND, torch.zeros(1, 3, 6, 8)) == (
        "number of keys=3: must be at least the 4 queries under a causal mask; pass causal=False"
    )
    ranges = KeyRanges.of_documents(starts_BT, 4)
    assert message(q_BTND, q_BTND, key_ranges=ranges, document_starts_BT=starts_BT) == (
        "key_ranges: is given together with document_starts_BT; pass one of them"
    )
    assert message(q_BTND, torch.zeros(1, 5, 6, 8), causal=False, document_starts_BT=starts_BT) == (
        "number of keys=5: must equal the 4 queries for documents without a causal mask; "
        "pass no document starts"
    )
