"""What holds for the kernels of attention alone: registration, awkward sizes, strides, threads.

Legend: B rows, T queries, S keys, N heads, K key heads, D head size.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roots.ops import AttentionDropout, attention
from roots.ops.attention import IMPLEMENTATIONS
from tests.ops.accuracy import all_dtypes, all_kernels, assert_as_accurate
from tests.ops.attention_formula import MASKS, Case, formula, key_ranges, operands, visible


def arguments(device: str, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    """Operands and options of attention_forward with everything in use."""
    case = Case(2, 9, 12, 4, 2, 32)
    ranges = key_ranges(case, MASKS["all"])
    assert ranges is not None
    q, k, v = (x.to(device, dtype).requires_grad_() for x in operands(case))
    keys_B = torch.tensor([3, -4], device=device)
    return q, k, v, ranges.bounds_BT2.to(device), True, 7, 0.2, 0.25, keys_B, 1


@all_kernels
@all_dtypes
def test_opcheck(namespace: str, device: str, dtype: torch.dtype) -> None:
    ops = getattr(torch.ops, namespace)
    forward = arguments(device, dtype)
    torch.library.opcheck(ops.attention_forward.default, forward)
    plain = (*forward[:3], None, False, 0, 0.2, 0.0, None, 0)
    torch.library.opcheck(ops.attention_forward.default, plain)
    with torch.no_grad():
        o_BTND, lse_BNT = ops.attention_forward(*forward)
        backward = (o_BTND, lse_BNT, *forward[:3], o_BTND, lse_BNT, *forward[3:])
        torch.library.opcheck(ops.attention_backward.default, backward)
        torch.library.opcheck(ops.attention_backward.default, (o_BTND, None, *backward[2:]))


# Everything that does not fill tiles of 6 rows, 16, 64 or 128 keys and 16 elements of a head.
AWKWARD = [
    Case(32, 1, 2, 3, 3, 40),
    Case(2, 17, 17, 3, 1, 20),
    Case(1, 130, 130, 2, 2, 33),
    Case(1, 7, 257, 5, 1, 72),
    Case(1, 64, 100, 2, 2, 256),
    Case(1, 13, 300, 6, 2, 300),
    Case(1, 300, 129, 1, 1, 48),
]


@all_dtypes
@pytest.mark.parametrize("mask", ["full", "causal", "all"])
@pytest.mark.parametrize("case", AWKWARD, ids=lambda case: "x".join(map(str, case)))
def test_awkward_sizes_on_a_cpu(dtype: torch.dtype, mask: str, case: Case) -> None:
    rule = MASKS[mask]
    if rule.causal and case.S < case.T:
        pytest.skip("a causal mask needs as many keys as queries")
    ranges = key_ranges(case, rule)
    visible_BTS = visible(case, rule, ranges)

    def op(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(
            q,
            k,
            v,
            causal=rule.causal,
            window=rule.window,
            key_ranges=ranges,
            implementation="roots",
        )

    assert_as_accurate(op, lambda q, k, v: formula(q, k, v, visible_BTS)[0], operands(case), dtype)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    case=st.builds(
        lambda rows, queries, past, key_heads, groups, size: Case(
            rows, queries, queries + past, key_heads * groups, key_heads, size
        ),
        st.integers(0, 2),
        st.integers(1, 70),
        st.integers(0, 140),
        st.integers(1, 2),
        st.integers(1, 3),
        st.integers(1, 70),
    ),
    mask=st.sampled_from(sorted(MASKS)),
    blind=st.booleans(),
    drops=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shape_on_a_cpu(case: Case, mask: str, blind: bool, drops: bool, seed: int) -> None:
    """Close to the reference, with gradients of output and log-sum-exp."""
    rule = MASKS[mask]
    options: dict[str, Any] = {
        "causal": rule.causal,
        "window": rule.window,
        "key_ranges": key_ranges(case, rule, blind=blind, seed=seed),
        "dropout": AttentionDropout(0.2, torch.arange(case.B), "x", 2) if drops else None,
        "return_lse": True,
    }
    results = []
    for implementation in ("roots", "reference"):
        leaves = [x.float().requires_grad_() for x in operands(case, seed)]
        o_BTND, lse_BNT = attention(*leaves, **options, implementation=implementation)
        seen_BNT = torch.where(lse_BNT.isfinite(), lse_BNT, 0.0)
        grads = torch.autograd.grad(o_BTND.square().sum() + seen_BNT.sin().sum(), leaves)
        results.append((o_BTND, lse_BNT, *grads))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("mask", ["causal", "all"])
@pytest.mark.parametrize("case", [Case(1, 700, 700, 2, 1, 32), Case(3, 150, 300, 2, 2, 40)])
def test_results_do_not_depend_on_the_number_of_threads(mask: str, case: Case) -> None:
    rule = MASKS[mask]
    ranges = key_ranges(case, rule)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            leaves = [x.float().requires_grad_() for x in operands(case)]
            o_BTND = attention(
                *leaves, window=rule.window, key_ranges=ranges, implementation="roots"
            )
            grads = torch.autograd.grad(o_BTND.square().sum(), leaves)
            results.append((o_BTND.detach(), *grads))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(left, right) for left, right in zip(results[0], other, strict=True))


@all_kernels
@all_dtypes
def test_strides_of_every_kind(namespace: str, device: str, dtype: torch.dtype) -> None:
    """Heads before tokens, gaps between elements, one key for all tokens, an odd address."""
    ops = getattr(torch.ops, namespace)
    q, k, v, *options = arguments(device, dtype)
    with torch.no_grad():
        k = k[:, :1].expand_as(k)
        expected = ops.attention_forward(q, k.contiguous(), v, *options)
        swapped = q.transpose(1, 2).contiguous().transpose(1, 2)
        spread = torch.stack((v, v), dim=-1)[..., 1]
        odd = torch.empty(k.numel() + 1, device=device, dtype=dtype)[1:].view(k.shape).copy_(k)
        for operands_ in ((swapped, k, v), (q, k, spread), (q, odd, v)):
            got = ops.attention_forward(*operands_, *options)
            assert all(torch.equal(*pair) for pair in zip(got, expected, strict=True))
        o_BTND, lse_BNT = expected
        expected = ops.attention_backward(
            o_BTND, None, q, k.contiguous(), v, o_BTND, lse_BNT, *options
        )
        far = o_BTND[:, :1].expand_as(o_BTND)
        assert ops.attention_backward(far, None, q, k, v, o_BTND, lse_BNT, *options)
        wide = torch.stack((o_BTND, o_BTND), dim=-1)[..., 0]
        got = ops.attention_backward(wide, None, swapped, k, spread, wide, lse_BNT, *options)
        assert all(torch.equal(*pair) for pair in zip(got, expected, strict=True))


@pytest.mark.all_implementations(IMPLEMENTATIONS[:2])
def test_offsets_beyond_32_bits(implementation: str) -> None:
    """Rows of the batch that lie 2^31 elements apart, in memory that is never touched."""
    stride = 2**31 + 64
    storage = torch.empty(stride + 3 * 64, dtype=torch.bfloat16)
    q = storage.as_strided((2, 3, 2, 32), (stride, 64, 32, 1))
    case = Case(2, 3, 3, 2, 2, 32)
    q.copy_(operands(case)[0])
    near = q.contiguous()
    assert torch.equal(
        attention(q, q, q, implementation=implementation),
        attention(near, near, near, implementation=implementation),
    )


@all_kernels
def test_bad_operands_are_refused(namespace: str, device: str) -> None:
    ops = getattr(torch.ops, namespace)

    def message(**changes: Any) -> str:
        names = ("q", "k", "v", "key_ranges", "causal", "window", "scale", "rate", "keys", "head")
        given_ = dict(zip(names, arguments(device), strict=True)) | changes
        with pytest.raises(RuntimeError) as caught, torch.no_grad():
            ops.attention_forward(*given_.values())
        return str(caught.value)

    def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(*shape, dtype=dtype, device=device)

    assert "must have the 4 dims [batch, token, head, head size]." in message(q=zeros(2, 9, 4))
    assert "v [2, 12, 1, 32] must have the shape of k [2, 12, 2, 32]." in message(
        v=zeros(2, 12, 1, 32)
    )
    assert "k [2, 12, 2, 40] must have the head size of q [2, 9, 4, 32]." in message(
        k=zeros(2, 12, 2, 40), v=zeros(2, 12, 2, 40)
    )
    assert "q has 4 heads; that must be a multiple of the 3 heads of k." in message(
        k=zeros(2, 12, 3, 32), v=zeros(2, 12, 3, 32)
    )
    assert "k has 8 tokens and q 9; under a causal mask k must have at least as many" in message(
        k=zeros(2, 8, 2, 32), v=zeros(2, 8, 2, 32)
    )
    assert "q must be float32, float16 or bfloat16." in message(
        q=zeros(2, 9, 2, 32, dtype=torch.float64),
        k=zeros(2, 9, 2, 32, dtype=torch.float64),
        v=zeros(2, 9, 2, 32, dtype=torch.float64),
    )
    assert "k and q must have the same dtype." in message(
        k=zeros(2, 12, 2, 32, dtype=torch.bfloat16)
    )
    assert "key_ranges [2, 8, 2] must have the shape [batch, token, 2] for q" in message(
        key_ranges=zeros(2, 8, 2, dtype=torch.int32)
    )
    assert "key_ranges must be int32." in message(key_ranges=zeros(2, 9, 2))
    assert "dropout_rate is 0.25, so dropout_keys must be given." in message(keys=None)
    assert "dropout_rate is 1; it must be at least 0 and less than 1." in message(rate=1.0)
    assert "dropout_keys [3] must have one key for each of the 2 rows of q." in message(
        keys=zeros(3, dtype=torch.int64)
    )
