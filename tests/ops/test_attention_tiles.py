"""Attention's kernels at every border of their tiles, in every shape that they are compiled for.

The CUDA kernels have tiles of 32, 64 or 128 queries and of 32 or 64 keys, and shapes of their own
for head sizes up to 32, 64, 96, 128, 192 and 256, each with and without dropout.

Legend: B rows, T queries, S keys, N heads, K key heads, D head size.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roots.ops import AttentionDropout, KeyRanges, attention
from roots.ops.attention import IMPLEMENTATIONS
from roots.ops.attention_dropout import attention_keep_mask
from tests.ops.accuracy import all_dtypes, assert_as_accurate, assert_close_as_baseline
from tests.ops.attention_formula import MASKS, Case, Mask, formula, key_ranges, operands, visible

own_kernels = pytest.mark.all_implementations(IMPLEMENTATIONS[:2])
simulated = pytest.mark.all_implementations(IMPLEMENTATIONS[1:2])
HEAD_SIZES = [32, 40, 56, 64, 72, 96, 104, 128, 136, 160, 192, 200, 256]
with_and_without_dropout = pytest.mark.parametrize("rate", [0.0, 0.2], ids=["kept", "dropped"])


def draws(case: Case, rate: float, device: str) -> AttentionDropout | None:
    """Dropout with a key for every row; some are negative."""
    keys_B = torch.tensor([2**40 + 7, -3, 11, -(2**50)][: case.B], device=device)
    return AttentionDropout(rate, keys_B, "layers.3", first_head=2) if rate else None


def assert_follows_rule(
    case: Case,
    mask: Mask,
    dtype: torch.dtype,
    options: dict[str, Any],
    *,
    ranges: KeyRanges | None = None,
    device: str,
) -> None:
    """o, lse and all gradients, those by lse among them."""
    ranges = key_ranges(case, mask) if ranges is None else ranges
    visible_BTS = visible(case, mask, ranges)
    assert visible_BTS.any(-1).all()
    dropout = options.get("dropout")
    factors_BNTS = None
    if dropout is not None:
        factors_BNTS = attention_keep_mask(dropout, case.T, case.S, case.N) * dropout.scale
    placed = None if ranges is None else KeyRanges(ranges.bounds_BT2.to(device))

    def op(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return attention(
            q,
            k,
            v,
            causal=mask.causal,
            window=mask.window,
            key_ranges=placed,
            return_lse=True,
            **options,
        )

    def baseline(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return formula(q, k, v, visible_BTS, factors_BNTS)

    assert_as_accurate(op, baseline, operands(case), dtype, device=device)


@all_dtypes
@own_kernels
@with_and_without_dropout
@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_head_sizes(
    dtype: torch.dtype, implementation: str, device: str, head_size: int, rate: float
) -> None:
    # The simulator takes its time; where there are more heads, less of an error is luck.
    heads = (2, 1) if implementation == "simulator" else (4, 2)
    case = Case(2, 70, 100, *heads, head_size)
    options = {"implementation": implementation, "dropout": draws(case, rate, device)}
    assert_follows_rule(case, MASKS["causal"], dtype, options, device=device)


WIDE_WINDOW = Mask(causal=True, window=70)
BORDERS = {
    "64x64": (64, 64, MASKS["causal"]),
    "65x129": (65, 129, MASKS["all"]),
    "128x128": (128, 128, WIDE_WINDOW),
    "129x63": (129, 63, MASKS["full"]),
    "200x31": (200, 31, MASKS["ranges"]),
    "31x200": (31, 200, MASKS["causal_ranges"]),
    "193x193": (193, 193, MASKS["causal"]),
    "70x190": (70, 190, MASKS["one_sided_window"]),
    "66x128": (66, 128, MASKS["causal"]),  # the first query sees all but the last key of a tile
}


@all_dtypes
@own_kernels
@pytest.mark.parametrize("head_size", [64, 256])
@pytest.mark.parametrize("border", BORDERS)
def test_lengths(
    dtype: torch.dtype, implementation: str, device: str, border: str, head_size: int
) -> None:
    queries, keys, mask = BORDERS[border]
    case = Case(1, queries, keys, 2, 2, head_size)
    assert_follows_rule(case, mask, dtype, {"implementation": implementation}, device=device)


@all_dtypes
@own_kernels
@pytest.mark.parametrize("growth", [12.0, -12.0], ids=["growing", "shrinking"])
def test_scores_that_grow_from_tile_to_tile(
    dtype: torch.dtype, implementation: str, device: str, growth: float
) -> None:
    """By 12 over 200 keys: the online softmax has to rescale what it summed."""
    case = Case(2, 40, 200, 2, 1, 64)
    q, k, v = operands(case)
    # The last elements of q and k alone make the slope; the scale is 1 / 8.
    q[..., -1] = 1.0
    k[..., -1] = (8.0 * growth * torch.arange(case.S) / case.S)[:, None]
    visible_BTS = visible(case, Mask())
    assert_as_accurate(
        lambda *qkv: attention(*qkv, causal=False, return_lse=True, implementation=implementation),
        lambda *qkv: formula(*qkv, visible_BTS),
        (q, k, v),
        dtype,
        device=device,
    )


@all_dtypes
@own_kernels
@with_and_without_dropout
@pytest.mark.parametrize("head_size", [48, 128])
def test_packed_documents(
    dtype: torch.dtype, implementation: str, device: str, rate: float, head_size: int
) -> None:
    """Documents that begin and end inside of tiles, others in each row; six heads share two."""
    case = Case(2, 180, 180, 6, 2, head_size)
    firsts = ([0, 70, 71, 135], [0, 5, 155, 157])
    token_T = torch.arange(case.T)
    rows = [torch.tensor(row) for row in firsts]
    starts_BT = torch.stack([row[torch.bucketize(token_T, row, right=True) - 1] for row in rows])
    ranges = KeyRanges.of_documents(starts_BT, case.S)
    options = {"implementation": implementation, "dropout": draws(case, rate, device)}
    assert_follows_rule(case, MASKS["causal"], dtype, options, ranges=ranges, device=device)


def results(case: Case, mask: Mask, dtype: torch.dtype, options: dict[str, Any]) -> list[Tensor]:
    """o, lse and the gradients."""
    leaves = [x.to(dtype).requires_grad_() for x in operands(case)]
    o_BTND, lse_BNT = attention(
        *leaves,
        causal=mask.causal,
        window=mask.window,
        key_ranges=key_ranges(case, mask, blind=True),
        return_lse=True,
        **options,
    )
    seen_BNT = torch.where(lse_BNT.isfinite(), lse_BNT, 0.0)
    loss = o_BTND.float().square().sum() + seen_BNT.sin().sum()
    return [o_BTND.detach(), lse_BNT.detach(), *torch.autograd.grad(loss, leaves)]


@all_dtypes
@simulated
@with_and_without_dropout
@pytest.mark.parametrize("head_size", [64, 128, 256])
def test_schedules_do_not_change_a_bit(
    dtype: torch.dtype,
    implementation: str,
    head_size: int,
    rate: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case(1, 140, 150, 2, 1, head_size)
    options = {"implementation": implementation, "dropout": draws(case, rate, "cpu")}
    monkeypatch.setenv("ROOTS_SIMULATOR_SEED", "0")
    expected = results(case, MASKS["causal_ranges"], dtype, options)
    for seed in range(1, 6):
        monkeypatch.setenv("ROOTS_SIMULATOR_SEED", str(seed))
        got = results(case, MASKS["causal_ranges"], dtype, options)
        assert all(torch.equal(*pair) for pair in zip(got, expected, strict=True)), seed


@all_dtypes
@simulated
@pytest.mark.parametrize("head_size", [40, 128])
def test_simulator_agrees_with_the_cpu(
    dtype: torch.dtype, implementation: str, head_size: int
) -> None:
    """The same draws, masks and blind queries: what one drops or hides, the other does."""
    case = Case(2, 70, 90, 2, 1, head_size)
    mask, dropout = MASKS["all"], draws(case, 0.3, "cpu")
    ours, cpu, gold = (
        results(case, mask, kind, {"implementation": name, "dropout": dropout})
        for kind, name in (
            (dtype, implementation),
            (dtype, "roots"),
            (torch.float64, "reference"),
        )
    )
    blind_BNT = gold[1].isinf()
    assert blind_BNT.any()
    assert torch.equal(ours[1].isinf(), blind_BNT)
    assert torch.equal(cpu[1].isinf(), blind_BNT)
    for tensors in (ours, cpu, gold):
        tensors[1] = tensors[1].masked_fill(blind_BNT, 0.0)
    for name, got, plain, wide in zip(("o", "lse", "dq", "dk", "dv"), ours, cpu, gold, strict=True):
        assert_close_as_baseline(name, got, plain, wide, dtype)


@simulated
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    case=st.builds(
        lambda rows, queries, past, key_heads, groups, size: Case(
            rows, queries, queries + past, key_heads * groups, key_heads, 8 * size
        ),
        st.integers(1, 2),
        st.integers(1, 140),
        st.integers(0, 140),
        st.integers(1, 2),
        st.integers(1, 2),
        st.integers(4, 16),
    ),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    mask=st.sampled_from(sorted(MASKS)),
    rate=st.sampled_from([0.0, 0.3]),
)
def test_any_shape(
    implementation: str, case: Case, dtype: torch.dtype, mask: str, rate: float
) -> None:
    """Close to the reference, blind queries and all."""
    options = {"dropout": draws(case, rate, "cpu")}
    ours = results(case, MASKS[mask], dtype, options | {"implementation": implementation})
    expected = results(case, MASKS[mask], dtype, options | {"implementation": "reference"})
    for got, wanted in zip(ours, expected, strict=True):
        largest = torch.where(wanted.isfinite(), wanted, 0.0).abs().max().item()
        error = 64 * torch.finfo(dtype).eps * max(largest, 1.0)
        torch.testing.assert_close(got, wanted, rtol=0.0, atol=error)
