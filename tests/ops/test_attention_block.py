"""attention_block: the gradients of blocks of keys add up to those of attention to all keys.

Legend: B rows, T queries, S keys, N heads, K key heads, D head size.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from roots.errors import RootsError
from roots.ops import KeyRanges, attention, attention_block
from tests.ops.accuracy import (
    all_dtypes,
    all_implementations,
    assert_close_as_baseline,
    plain_implementations,
    random_inputs,
)
from tests.ops.attention_formula import formula

# Keys of the blocks; the last query sees all, the first but one, some blocks show it nothing.
BLOCKS = (20, 1, 36)


def bounds_of(rows: int, queries: int) -> Tensor:
    """Causal ranges over 57 keys, from a document start that is another for each row."""
    keys = sum(BLOCKS)
    hi_BT = torch.linspace(1, keys, queries).long().expand(rows, -1)
    starts_B1 = torch.tensor([0, 9, 21, 30][:rows])[:, None]
    lo_BT = torch.where(hi_BT > starts_B1, starts_B1, 0)
    return torch.stack((lo_BT, hi_BT), -1).int()


def in_blocks(
    inputs: list[Tensor], do_BTND: Tensor, implementation: str
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv by one call a block, given o and lse of all keys."""
    q_BTND, k_BSKD, v_BSKD = inputs
    bounds_BT2 = bounds_of(*q_BTND.shape[:2]).to(q_BTND.device)
    o_BTND, lse_BNT = attention(
        *inputs,
        key_ranges=KeyRanges(bounds_BT2, complete=True),
        return_lse=True,
        implementation=implementation,
    )
    dq, dks, dvs, start = torch.zeros_like(q_BTND), [], [], 0
    for size in BLOCKS:
        here = slice(start, start + size)
        ranges = KeyRanges((bounds_BT2 - start).contiguous(), complete=True)
        block = (q_BTND, k_BSKD[:, here].contiguous(), v_BSKD[:, here].contiguous())
        block_dq, dk, dv = attention_block(
            do_BTND, block, (o_BTND, lse_BNT), ranges, implementation=implementation
        )
        dq = dq + block_dq
        dks.append(dk)
        dvs.append(dv)
        start += size
    return dq, torch.cat(dks, 1), torch.cat(dvs, 1)


def by_formula(inputs: list[Tensor], do_BTND: Tensor) -> tuple[Tensor, ...]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    bounds_BT2 = bounds_of(*inputs[0].shape[:2]).to(inputs[0].device)
    keys_S = torch.arange(sum(BLOCKS), device=inputs[0].device)
    visible_BTS = (keys_S >= bounds_BT2[..., :1]) & (keys_S < bounds_BT2[..., 1:])
    o_BTND = formula(*leaves, visible_BTS)[0]
    return torch.autograd.grad(o_BTND, leaves, do_BTND)


def operands(heads: int, key_heads: int, size: int) -> list[Tensor]:
    keys = sum(BLOCKS)
    shapes = (4, 33, heads, size), (4, keys, key_heads, size), (4, keys, key_heads, size)
    return random_inputs(*shapes, (4, 33, heads, size))


@all_implementations
@all_dtypes
def test_blocks_add_up_as_accurately_as_the_baseline(
    implementation: str, device: str, dtype: torch.dtype
) -> None:
    *inputs, do = (x.to(device, dtype) for x in operands(4, 2, 40))
    gold = by_formula([x.double() for x in inputs], do.double())
    plain = by_formula(inputs, do)
    ours = in_blocks(inputs, do, implementation)
    for name, values in zip("qkv", zip(ours, plain, gold, strict=True), strict=True):
        assert_close_as_baseline(f"d{name}", *values, dtype)


@plain_implementations
def test_blocks_add_up_in_float64(implementation: str) -> None:
    *inputs, do = operands(3, 3, 8)
    for ours, gold in zip(in_blocks(inputs, do, implementation), by_formula(inputs, do)):
        torch.testing.assert_close(ours, gold, rtol=1e-11, atol=1e-11)


def test_an_implementation_without_log_sum_exp_is_refused() -> None:
    *inputs, do = (x.float() for x in operands(2, 2, 32))
    with pytest.raises(RootsError) as caught:
        in_blocks(inputs, do, "torch_sdpa")
    assert "returns no log-sum-exp" in str(caught.value)
