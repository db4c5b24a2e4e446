"""What the tests of attention share: cases, which keys are visible, and the formula.

Legend: B rows, T queries, S keys, N heads, K key heads, D head size.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from roots.ops import KeyRanges
from tests.ops.accuracy import random_inputs


class Case(NamedTuple):
    """Sizes by the letters of the legend."""

    B: int
    T: int
    S: int
    N: int
    K: int
    D: int


class Mask(NamedTuple):
    """What bounds the visible keys; `ranges` are random bounds of every query."""

    causal: bool = False
    window: int = 0
    ranges: bool = False


MASKS = {
    "full": Mask(),
    "causal": Mask(causal=True),
    "window": Mask(causal=True, window=5),
    "one_sided_window": Mask(window=3),
    "ranges": Mask(ranges=True),
    "causal_ranges": Mask(causal=True, ranges=True),
    "all": Mask(causal=True, window=7, ranges=True),
}


def operands(case: Case, seed: int = 0) -> list[Tensor]:
    """q, k and v in float64."""
    q_shape = (case.B, case.T, case.N, case.D)
    kv_shape = (case.B, case.S, case.K, case.D)
    return random_inputs(q_shape, kv_shape, kv_shape, seed=seed)


def key_ranges(case: Case, mask: Mask, *, blind: bool = False, seed: int = 0) -> KeyRanges | None:
    """Random bounds, partly outside of the keys; without `blind` every query sees a key."""
    if not mask.ranges:
        return None
    generator = torch.Generator().manual_seed(seed)
    position_T = torch.arange(case.S - case.T, case.S)
    own_BT = position_T.clamp(0, case.S - 1).expand(case.B, case.T)

    def draw(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (case.B, case.T), generator=generator)

    lo_BT = own_BT - draw(-3 if blind else 0, case.S // 2 + 2)
    hi_BT = own_BT + draw(-3 if blind else 1, case.S // 2 + 2)
    return KeyRanges(torch.stack((lo_BT, hi_BT), dim=-1).to(torch.int32))


def visible(case: Case, mask: Mask, ranges: KeyRanges | None = None) -> Tensor:
    """Brute force: may query t of row b see key s?  [B, T, S]."""
    table = torch.zeros(case.B, case.T, case.S, dtype=torch.bool)
    for b in range(case.B):
        for t in range(case.T):
            position = t + case.S - case.T
            lo, hi = (0, case.S) if ranges is None else ranges.bounds_BT2[b, t].tolist()
            if mask.causal:
                hi = min(hi, position + 1)
            if mask.window:
                lo = max(lo, position - mask.window + 1)
            lo, hi = max(lo, 0), min(hi, case.S)
            table[b, t, lo : max(lo, hi)] = True
    return table


class _Formula(torch.autograd.Function):
    """The formula in plain torch of the dtype of q, with the backward pass of every fused kernel.

    That pass takes sum_s(p dp) from the output, as sum_d(o do), instead of from stored weights
    (Dao et al., "FlashAttention", 2022, section 3.1), so its rounding is the one to compare with:
    stored weights give an exact 0 where a query sees a single key.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, visible_BTS: Tensor, factors_BNTS: Tensor
    ) -> tuple[Tensor, Tensor]:
        scores_BNTS = torch.einsum("btnd,bsnd->bnts", q, k) / math.sqrt(q.shape[-1])
        scores_BNTS = scores_BNTS.masked_fill(~visible_BTS[:, None], -math.inf)
        weights_BNTS = scores_BNTS.softmax(-1)
        o = torch.einsum("bnts,bsnd->btnd", weights_BNTS * factors_BNTS, v)
        ctx.save_for_backward(q, k, v, weights_BNTS, factors_BNTS, o)
        return o, scores_BNTS.logsumexp(-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights_BNTS, factors_BNTS, o = ctx.saved_tensors
        grad_o, grad_lse_BNT = grads
        shared_BNT = (o * grad_o).sum(-1).transpose(1, 2) - grad_lse_BNT
        grad_weights_BNTS = torch.einsum("btnd,bsnd->bnts", grad_o, v) * factors_BNTS
        grad_scores = weights_BNTS * (grad_weights_BNTS - shared_BNT[..., None])
        grad_scores = grad_scores / math.sqrt(q.shape[-1])
        return (
            torch.einsum("bnts,bsnd->btnd", grad_scores, k),
            torch.einsum("bnts,btnd->bsnd", grad_scores, q),
            torch.einsum("bnts,btnd->bsnd", weights_BNTS * factors_BNTS, grad_o),
            None,
            None,
        )


def formula(
    q_BTND: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    visible_BTS: Tensor,
    factors_BNTS: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """o_BTND and lse_BNT in plain torch in the dtype of q; factors: dropout of the weights."""
    groups = q_BTND.shape[2] // k_BSKD.shape[2]
    k_BSND, v_BSND = (x.repeat_interleave(groups, dim=2) for x in (k_BSKD, v_BSKD))
    factors = q_BTND.new_ones(()) if factors_BNTS is None else factors_BNTS.to(q_BTND)
    o_BTND, lse_BNT = _Formula.apply(q_BTND, k_BSND, v_BSND, visible_BTS.to(q_BTND.device), factors)
    return o_BTND, lse_BNT
