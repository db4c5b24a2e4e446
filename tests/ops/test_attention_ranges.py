"""Ranges of visible keys: from document starts and from cumulative lengths, against brute force.

Legend: B rows, T queries, S keys, E ends of documents.
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
from tests.ops.accuracy import all_implementations, random_inputs


def document_starts(rows: int, queries: int, keys: int, seed: int) -> Tensor:
    """Random documents, as key positions of the queries [B, T]."""
    generator = torch.Generator().manual_seed(seed)
    begins_BS = torch.rand(rows, keys, generator=generator) < 0.3
    begins_BS[:, 0] = True
    positions_BS = torch.arange(keys).expand(rows, keys)
    starts_BS = torch.where(begins_BS, positions_BS, 0).cummax(dim=1).values
    return starts_BS[:, keys - queries :]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.integers(0, 3), queries=st.integers(1, 9), past=st.integers(0, 9), seed=st.integers(0)
)
def test_causal_documents(rows: int, queries: int, past: int, seed: int) -> None:
    keys = queries + past
    starts_BT = document_starts(rows, queries, keys, seed % 1000)
    ranges = KeyRanges.of_documents(starts_BT, keys)
    mask = ranges.additive_mask(keys, True, 0, torch.bfloat16)
    assert mask.dtype == torch.bfloat16
    assert mask.shape == (rows, 1, queries, keys)
    for b in range(rows):
        for t in range(queries):
            for s in range(keys):
                sees = int(starts_BT[b, t]) <= s <= t + past
                assert mask[b, 0, t, s] == (0.0 if sees else -math.inf)
    assert ranges.additive_mask(keys, True, 0, torch.bfloat16) is mask
    assert ranges.additive_mask(keys, True, 2, torch.bfloat16) is not mask


@settings(max_examples=20, deadline=None, derandomize=True)
@given(rows=st.integers(0, 3), tokens=st.integers(1, 15), seed=st.integers(0))
def test_documents_without_a_causal_mask(rows: int, tokens: int, seed: int) -> None:
    starts_BT = document_starts(rows, tokens, tokens, seed % 1000)
    visible_BTS = KeyRanges.of_documents(starts_BT, tokens, causal=False).visible(tokens, False, 0)
    assert torch.equal(visible_BTS, starts_BT[:, :, None] == starts_BT[:, None, :])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), min_size=1, max_size=5),
    padding=st.integers(0, 3),
    causal=st.booleans(),
    window=st.integers(0, 4),
)
def test_cumulative_lengths(
    lengths: list[tuple[int, int]], padding: int, causal: bool, window: int
) -> None:
    """Every query sees the keys of its document, aligned with its last key; padding sees none."""
    query_ends, key_ends = (
        torch.tensor([0, *(pair[side] for pair in lengths)]).cumsum(0) for side in (0, 1)
    )
    queries, keys = int(query_ends[-1]) + padding, int(key_ends[-1])
    expected_TS = torch.zeros(queries, keys, dtype=torch.bool)
    for document, (query_count, key_count) in enumerate(lengths):
        for i in range(query_count):
            for j in range(key_count):
                own = i + key_count - query_count
                sees = (not causal or j <= own) and (not window or j > own - window)
                expected_TS[query_ends[document] + i, key_ends[document] + j] = sees
    ranges = KeyRanges.of_lengths(
        query_ends.to(torch.int32),
        key_ends.to(torch.int32),
        num_queries=queries,
        causal=causal,
        window=window,
    )
    assert ranges.complete
    assert torch.equal(ranges.visible(keys, False, 0)[0], expected_TS)


@all_implementations
def test_packed_sequences_equal_separate_ones(implementation: str) -> None:
    """Cross lengths: documents of 3 and 6 queries with 8 and 6 keys, 2 tokens of padding."""
    q, k = (x.float() for x in random_inputs((1, 11, 2, 32), (1, 14, 2, 32)))
    ends, key_ends = torch.tensor([0, 3, 9]), torch.tensor([0, 8, 14])
    ranges = KeyRanges.of_lengths(ends, key_ends, num_queries=11)
    packed = attention(q, k, k, key_ranges=ranges, implementation=implementation)
    for rows, keys in ((slice(0, 3), slice(0, 8)), (slice(3, 9), slice(8, 14))):
        alone = attention(q[:, rows], k[:, keys], k[:, keys], implementation=implementation)
        torch.testing.assert_close(packed[:, rows], alone, rtol=1e-5, atol=1e-6)
    assert not packed[:, 9:].any()


def test_self_attention_needs_one_list_of_lengths() -> None:
    ends = torch.tensor([0, 3, 9])
    ranges = KeyRanges.of_lengths(ends, num_queries=9)
    starts_BT = torch.tensor([[0, 0, 0, 3, 3, 3, 3, 3, 3]])
    by_starts = KeyRanges.of_documents(starts_BT, 9)
    assert torch.equal(ranges.visible(9, False, 0), by_starts.visible(9, True, 0))


def test_bad_ranges_are_refused() -> None:
    starts_BT = torch.zeros(1, 4, dtype=torch.int64)
    with pytest.raises(RootsError) as caught:
        KeyRanges.of_documents(starts_BT, 5, causal=False)
    assert str(caught.value) == (
        "number of keys=5: must equal the 4 queries for documents without a causal mask; "
        "pass no document starts"
    )
    with pytest.raises(RootsError) as caught:
        KeyRanges(starts_BT)
    assert str(caught.value) == (
        "key ranges='int64[1, 4]': must be int32 of shape [rows, queries, 2]; "
        "pass (lo, hi) for every query"
    )
    with pytest.raises(RootsError) as caught:
        KeyRanges.of_lengths(torch.tensor([0, 4]), torch.tensor([0, 2, 4]), num_queries=4)
    assert str(caught.value) == (
        "cumulative lengths of keys=3: must be the 2 of the queries; "
        "pass cumulative lengths of the same documents"
    )
