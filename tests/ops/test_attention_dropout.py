"""Dropout of attention weights: a function of (row key, site, global head, query, key)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from roots.errors import RootsError
from roots.ops import AttentionDropout, KeyRanges, attention
from roots.ops.attention_dropout import attention_keep_mask, philox4x32
from roots.seeding import derive_key
from tests.ops.accuracy import all_dtypes, all_implementations, assert_as_accurate
from tests.ops.attention_formula import MASKS, Case, formula, key_ranges, operands, visible

KEYS_B = torch.tensor([derive_key("row", row) for row in range(3)])


def drop(rate: float = 0.3, site: str = "layers.0", first_head: int = 0) -> AttentionDropout:
    return AttentionDropout(rate, KEYS_B, site, first_head)


SQUARE = Case(3, 9, 9, 4, 4, 40)


def refuse_torch(implementation: str) -> None:
    if implementation == "torch_sdpa":
        pytest.skip("torch draws attention dropout from a generator")


@all_dtypes
@all_implementations
@pytest.mark.parametrize(
    "case, mask",
    [
        (Case(3, 9, 9, 4, 4, 40), "causal"),
        (Case(2, 17, 150, 4, 2, 32), "full"),
        (Case(2, 33, 20, 2, 1, 64), "ranges"),
    ],
    ids=["causal", "grouped", "ranges"],
)
def test_attention_with_dropout_is_as_accurate_as_the_baseline(
    dtype: torch.dtype, implementation: str, device: str, case: Case, mask: str
) -> None:
    refuse_torch(implementation)
    dropout = AttentionDropout(0.3, KEYS_B[: case.B].to(device), "layers.0", first_head=3)
    keep_BNTS = attention_keep_mask(dropout, case.T, case.S, case.N)
    ranges = key_ranges(case, MASKS[mask])
    visible_BTS = visible(case, MASKS[mask], ranges)

    def baseline(q_BTND: Tensor, k_BSKD: Tensor, v_BSKD: Tensor) -> Tensor:
        return formula(q_BTND, k_BSKD, v_BSKD, visible_BTS, keep_BNTS * dropout.scale)[0]

    def op(q_BTND: Tensor, k_BSKD: Tensor, v_BSKD: Tensor) -> Tensor:
        return attention(
            q_BTND,
            k_BSKD,
            v_BSKD,
            causal=MASKS[mask].causal,
            key_ranges=None if ranges is None else KeyRanges(ranges.bounds_BT2.to(device)),
            dropout=dropout,
            implementation=implementation,
        )

    assert_as_accurate(op, baseline, operands(case), dtype, device=device)


@all_implementations
@pytest.mark.parametrize("first_key", [0, 300], ids=["first_keys", "later_keys"])
def test_every_implementation_keeps_the_same_weights(
    implementation: str, device: str, first_key: int
) -> None:
    """Values that are unit vectors show the weights in the output, unit gradients in dv."""
    refuse_torch(implementation)
    rows, queries, heads, size = 2, 7, 2, 256
    keys = first_key + size
    dropout = AttentionDropout(0.5, KEYS_B[:rows].to(device), "layers.0", first_head=5)
    keep_BNTS = attention_keep_mask(dropout, queries, keys, heads)[..., first_key:]
    generator = torch.Generator().manual_seed(0)
    q, k = (
        torch.randn(rows, tokens, heads, size, generator=generator).to(device)
        for tokens in (queries, keys)
    )
    v = torch.zeros(rows, keys, heads, size, device=device)
    v[:, first_key:] = torch.eye(size, device=device)[:, None]
    v.requires_grad_()
    bounds_BT2 = torch.tensor([first_key, keys], dtype=torch.int32, device=device)
    o_BTND = attention(
        q,
        k,
        v,
        causal=False,
        key_ranges=KeyRanges(bounds_BT2.expand(rows, queries, 2)),
        dropout=dropout,
        implementation=implementation,
    )
    assert torch.equal(o_BTND.transpose(1, 2) != 0, keep_BNTS)
    unit_BTND = torch.eye(queries, size, device=device)[:, None].expand(o_BTND.shape)
    (dv_BSND,) = torch.autograd.grad(o_BTND, v, unit_BTND)
    shown_BNTS = dv_BSND[:, first_key:, :, :queries].permute(0, 2, 3, 1) != 0
    assert torch.equal(shown_BNTS, keep_BNTS)


@pytest.mark.parametrize(
    "counter, key, expected",
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_known_answers(
    counter: list[int], key: list[int], expected: list[int]
) -> None:
    """The answers published with the generator (Random123, kat_vectors)."""
    words = philox4x32(
        tuple(torch.tensor([word]) for word in counter),
        (torch.tensor([key[0]]), torch.tensor([key[1]])),
    )
    assert [int(word) for word in words] == expected


def test_every_weight_is_drawn_by_its_position() -> None:
    """Each bit of the mask against a single call for its key, query, head and row."""
    dropout = drop(rate=0.4, first_head=3)
    mask = attention_keep_mask(dropout, 2, 70, 2)
    keys_B = dropout.philox_keys()
    for b, n, t, s in [(0, 0, 0, 0), (1, 1, 0, 9), (2, 0, 1, 31), (0, 1, 1, 32), (2, 1, 0, 69)]:
        counter = (s // 32 * 4 + s % 8 // 2, t + 68, 3 + n, 0)
        key = (int(keys_B[b]) & 0xFFFFFFFF, int(keys_B[b]) >> 32 & 0xFFFFFFFF)
        words = philox4x32(
            tuple(torch.tensor([word]) for word in counter),
            (torch.tensor([key[0]]), torch.tensor([key[1]])),
        )
        bits = int(words[s % 32 // 8]) >> (16 * (s % 2)) & 0xFFFF
        assert bool(mask[b, n, t, s]) == (bits >= round(0.4 * 65536))


def test_rates_are_taken_to_the_resolution_of_the_draws() -> None:
    assert drop(0.25).threshold == 16384
    assert drop(0.25).scale == 65536 / 49152
    assert drop(1e-9).threshold == 0
    assert drop(1 - 1e-9).threshold == 65535


def test_a_tensor_rank_draws_the_masks_of_its_heads() -> None:
    whole = attention_keep_mask(drop(), 9, 9, 4)
    part = attention_keep_mask(drop(first_head=2), 9, 9, 2)
    assert torch.equal(part, whole[:, 2:])
    q, k, v = operands(SQUARE)
    o_BTND = attention(q, k, v, dropout=drop())
    share = attention(q[:, :, 2:], k[:, :, 2:], v[:, :, 2:], dropout=drop(first_head=2))
    torch.testing.assert_close(share, o_BTND[:, :, 2:], rtol=1e-12, atol=1e-12)


def test_queries_computed_later_draw_the_same_mask() -> None:
    """The last 4 of 9 queries alone, as with a cache or a chunk of the sequence."""
    whole = attention_keep_mask(drop(), 9, 9, 4)
    assert torch.equal(attention_keep_mask(drop(), 4, 9, 4), whole[:, :, 5:])


def test_rows_draw_by_their_own_key() -> None:
    whole = attention_keep_mask(drop(), 9, 9, 4)
    alone = AttentionDropout(0.3, KEYS_B[1:2], "layers.0")
    assert torch.equal(attention_keep_mask(alone, 9, 9, 4), whole[1:2])


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_share_and_independence(rate: float) -> None:
    keep = attention_keep_mask(drop(rate), 128, 128, 8).double()
    other = attention_keep_mask(drop(rate, site="layers.1"), 128, 128, 8).double()
    bound = 4.5 / math.sqrt(keep.numel() / 2)
    deviation = math.sqrt(rate * (1 - rate))
    assert abs(keep.mean() - (1 - rate)) < bound * deviation
    scores, other_scores = (keep - (1 - rate)) / deviation, (other - (1 - rate)) / deviation
    assert abs((scores * other_scores).mean()) < bound
    for dim in range(4):
        left = scores.narrow(dim, 0, scores.shape[dim] - 1)
        right = scores.narrow(dim, 1, scores.shape[dim] - 1)
        assert abs((left * right).mean()) < bound


def test_gradients_against_finite_differences() -> None:
    inputs = [x.requires_grad_() for x in operands(Case(3, 4, 4, 2, 2, 3))]
    assert torch.autograd.gradcheck(lambda q, k, v: attention(q, k, v, dropout=drop()), inputs)


def test_rate_zero_uses_the_fused_kernel() -> None:
    q, k, v = operands(SQUARE)
    with_zero = attention(q, k, v, dropout=drop(0.0), implementation="torch_sdpa")
    assert torch.equal(with_zero, attention(q, k, v))


def test_fused_kernel_is_refused_with_its_reason() -> None:
    with pytest.raises(RootsError) as caught:
        attention(*operands(SQUARE), dropout=drop(), implementation="torch_sdpa")
    assert str(caught.value) == (
        "ops.attention='torch_sdpa': cannot run here: torch draws attention dropout from a "
        "generator, so the mask would change with the layout, with recompute and after a resume; "
        'use "auto"'
    )
