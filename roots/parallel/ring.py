"""Attention over the context axis by passing keys and values round (Ring Attention,
arXiv:2310.01889): every rank attends with its own queries to one rank's keys after the other.

    o = sum_j exp(lse_j - lse) o_j        lse = log sum_j exp(lse_j)        over the ranks j

with o_j and lse_j those of attention to the keys of rank j alone. Backward goes round once more:
with o and lse of the whole, each rank's keys give their share of dq, and their own dk and dv, which
travel with them (roots.ops.attention_block). So nothing is kept but q, k, v, o and lse of this
rank's tokens, and no rank ever holds more than two ranks' keys.

A query sees an interval of positions. Of the keys of one rank, which stand in ascending order,
these are an interval too, whatever the placement: that is what the ranges say.

Legend: B micro-batch, T tokens of this rank, S of the sample, n query and k key heads of this
tensor rank, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from roots.ops import KeyRanges, attention, attention_block
from roots.ops.dispatch import AUTO, accumulation_dtype
from roots.parallel.collectives import Pending, shift_async
from roots.parallel.mesh import Axis
from roots.parallel.placement import Placement


def ring_ranges(
    document_starts_BS: Tensor, place: Placement, *, separate: bool, window: int = 0
) -> tuple[KeyRanges, ...]:
    """For every context rank, which of its keys this rank's queries see: causal, within documents.

    separate: documents are told apart. window > 0: only so many keys up to the query's own.
    """
    device, num_tokens = document_starts_BS.device, document_starts_BS.shape[1]
    positions_T = place.positions(num_tokens, device)
    lo_BT = document_starts_BS[:, positions_T] * int(separate)
    if window > 0:
        lo_BT = torch.maximum(lo_BT, positions_T - window + 1)
    last_BT = positions_T.expand_as(lo_BT).contiguous()
    found = []
    for rank in range(place.context.size):
        keys_T = place.positions_of(rank, num_tokens, device)
        bounds = torch.searchsorted(keys_T, lo_BT), torch.searchsorted(keys_T, last_BT, right=True)
        found.append(KeyRanges(torch.stack(bounds, dim=-1).to(torch.int32), complete=True))
    return tuple(found)


def ring_attention(
    q_BTnD: Tensor,
    k_BTkD: Tensor,
    v_BTkD: Tensor,
    ranges: Sequence[KeyRanges],
    axis: Axis,
    *,
    implementation: str = AUTO,
) -> Tensor:
    """o_BTnD of this rank's queries over the keys of all ranks that `ranges` (ring_ranges) show.

    Every query must see a key of its own rank, as under a causal mask it sees itself.
    Communication: forward, size - 1 times, k and v to the next rank while attention to those at
    hand is computed; backward the same, and dk and dv, in at least fp32, size times.
    """
    ring = _Ring(tuple(ranges), axis, implementation)
    result: Tensor = _RingAttention.apply(q_BTnD, k_BTkD, v_BTkD, ring)
    return result


@dataclass(frozen=True)
class _Ring:
    ranges: tuple[KeyRanges, ...]
    axis: Axis
    implementation: str

    def owner(self, step: int) -> int:
        """Whose keys are here after so many steps."""
        return (self.axis.rank - step) % self.axis.size

    def pass_on(self, x: Tensor, step: int) -> Pending | None:
        """Start sending the keys of `step` to the next rank, unless they have been everywhere."""
        return None if step == self.axis.size - 1 else shift_async(x, self.axis)


class _RingAttention(Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, ring: _Ring) -> Tensor:
        kv = torch.stack((k, v))
        o = lse = torch.empty(0)
        for step in range(ring.axis.size):
            coming = ring.pass_on(kv, step)
            block_o, block_lse = attention(
                q,
                kv[0],
                kv[1],
                key_ranges=ring.ranges[ring.owner(step)],
                return_lse=True,
                implementation=ring.implementation,
            )
            if step == 0:
                o, lse = block_o.to(accumulation_dtype(q.dtype)), block_lse
            else:
                o, lse = _merge(o, lse, block_o, block_lse)
            if coming is not None:
                kv = coming.wait()
        o = o.to(q.dtype)
        ctx.save_for_backward(q, k, v, o, lse)
        ctx.ring = ring
        return o

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, o, lse = ctx.saved_tensors
        ring: _Ring = ctx.ring
        wide = accumulation_dtype(q.dtype)
        kv, dq = torch.stack((k, v)), torch.zeros_like(q, dtype=wide)
        dkv_coming: Pending | None = None
        for step in range(ring.axis.size):
            coming = ring.pass_on(kv, step)
            block_dq, *block_dkv = attention_block(
                do,
                (q, kv[0], kv[1]),
                (o, lse),
                ring.ranges[ring.owner(step)],
                implementation=ring.implementation,
            )
            dq += block_dq
            dkv = torch.stack(block_dkv).to(wide)
            if dkv_coming is not None:
                dkv += dkv_coming.wait()
            # Follows its keys, after the last step to their owner.
            dkv_coming = shift_async(dkv, ring.axis)
            if coming is not None:
                kv = coming.wait()
        assert dkv_coming is not None
        dk, dv = dkv_coming.wait().to(k.dtype)
        return dq.to(q.dtype), dk, dv, None


def _merge(
    o_BTnD: Tensor, lse_BnT: Tensor, block_o_BTnD: Tensor, block_lse_BnT: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention to the keys so far and to those of a block (which may show none: lse -inf)."""
    whole_BnT = torch.logaddexp(lse_BnT, block_lse_BnT)
    old, new = ((x - whole_BnT).exp().transpose(1, 2)[..., None] for x in (lse_BnT, block_lse_BnT))
    return o_BTnD * old + block_o_BTnD * new, whole_BnT
