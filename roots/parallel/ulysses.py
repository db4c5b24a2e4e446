"""Attention over the context axis by exchanging heads for tokens (DeepSpeed-Ulysses,
arXiv:2309.14509): every rank attends with a share of the heads over all tokens.

DeepSpeed's own `DistributedAttention` (0.19, sequence/layer.py) does not serve: it asserts that
there are at least as many key heads as ranks, and does not tell the attention which global heads it
is given, without which dropout could not draw their masks.

Legend: B micro-batch, T tokens of this rank, S of the sample, n query and k key heads of this
tensor rank, D head size, C ranks of the context axis; m heads that go to one rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from roots.parallel.collectives import exchange
from roots.parallel.mesh import Axis


def ulysses_attention(
    q_BTnD: Tensor,
    k_BTkD: Tensor,
    v_BTkD: Tensor,
    axis: Axis,
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """o_BTnD = `attend` over all S tokens, for n / C heads on each rank.

    attend: q [B, S, n / C, D], k and v [B, S, k' / C, D] -> o like q; its first head is head
            axis.rank * n / C of this tensor rank. Rank r holds the r-th contiguous part of S.
    n must be divisible by C (a rule of the config). Key heads that C does not divide are repeated
    up to the next number that it does, which still divides n.

    Communication: forward two all-to-alls, one of q, k and v together, one of o; backward two.
    """
    size, heads, key_heads = axis.size, q_BTnD.shape[2], k_BTkD.shape[2]
    repeats = math.lcm(key_heads, size) // key_heads
    if repeats > 1:
        k_BTkD, v_BTkD = (x.repeat_interleave(repeats, dim=2) for x in (k_BTkD, v_BTkD))
    parts = [x.unflatten(2, (size, -1)) for x in (q_BTnD, k_BTkD, v_BTkD)]
    shares = [part.shape[3] for part in parts]
    qkv_BTCmD = torch.cat(parts, dim=3)
    qkv_BSmD = exchange(qkv_BTCmD, axis, split=2, join=1).squeeze(2)
    assert sum(shares) == qkv_BSmD.shape[2], f"{heads} heads over {size} ranks"
    o_BSmD = attend(*qkv_BSmD.split(shares, dim=2))
    return exchange(o_BSmD, axis, split=1, join=2)
