"""Dropout of attention weights: which are kept is a pure function of where they stand.

For a row with a 64-bit key, query position p = t + S - T, global head h and key position s,
    bits = the low (s even) or high (s odd) half of word s % 32 / 8 of
           Philox4x32-10(counter (s / 32 * 4 + s % 8 / 2, p, h, 0), key of the row)
    kept iff bits >= threshold, threshold = round(rate * 65536); multiplied by 1 / (1 - rate)
so the mask is the same on every layout, under recompute, after a resume, and however many queries
are computed at once. csrc/philox.h has the same for the kernels, which draw it again in backward.

Philox: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011.

Legend: B rows, T queries, S keys, N heads, G groups of 32 keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from roots.ops.dropout import row_keys

# Rates are multiples of one by this.
RATE_STEPS = 1 << 16
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF
_GROUP = 32


@dataclass(frozen=True)
class AttentionDropout:
    """Dropout of the attention weights, a pure function of (row key, site, global head, t, s).

    rate: taken to the nearest multiple of 1 / 65536 below 1, the resolution of the draws.
    first_head: global index of the first local query head, on a rank that holds a share of them.
    """

    rate: float
    keys_B: Tensor
    site: str
    first_head: int = 0

    @property
    def threshold(self) -> int:
        """Draws of 16 bits below this are dropped."""
        return min(round(self.rate * RATE_STEPS), RATE_STEPS - 1)

    @property
    def scale(self) -> float:
        """What the kept weights are multiplied by, so that the mean stays."""
        return RATE_STEPS / (RATE_STEPS - self.threshold)

    def philox_keys(self) -> Tensor:
        """The key of every row, int64 [B]."""
        return row_keys(self.keys_B, self.site)


def attention_keep_mask(
    dropout: AttentionDropout, num_queries: int, num_keys: int, num_heads: int
) -> Tensor:
    """Return which attention weights are kept, bool [B, N, T, S]."""
    device = dropout.keys_B.device
    groups = -(-num_keys // _GROUP)
    calls_C = torch.arange(groups * 4, device=device)
    positions_T = torch.arange(num_keys - num_queries, num_keys, device=device)
    first = dropout.first_head
    heads_N11 = torch.arange(first, first + num_heads, device=device)[:, None, None]
    keys_B111 = dropout.philox_keys()[:, None, None, None]
    counter = (calls_C, positions_T[:, None] & _LOW, heads_N11, torch.zeros_like(calls_C))
    words = philox4x32(counter, (keys_B111 & _LOW, keys_B111 >> 32 & _LOW))
    # Of a group, call i has keys 8 j + 2 i (low half) and 8 j + 2 i + 1 in word j.
    halves = torch.stack([word >> shift & 0xFFFF for word in words for shift in (0, 16)], dim=-1)
    shape = halves.shape[:-2]
    halves = halves.view(*shape, groups, 4, 4, 2).transpose(-3, -2).reshape(*shape, groups * _GROUP)
    return halves[..., :num_keys] >= dropout.threshold


def philox4x32(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Return four int64 tensors with 32 random bits an element (Philox4x32-10).

    counter: four int64 tensors, key: two, of 32-bit numbers, that broadcast against each other.
    """
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter, *key)[:4]
    key0, key1 = key
    for _ in range(10):
        # The product modulo 2^64; its halves are cut out of the signed number.
        left, right = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = (right >> 32 & _LOW) ^ c1 ^ key0, right & _LOW
        c2, c3 = (left >> 32 & _LOW) ^ c3 ^ key1, left & _LOW
        key0, key1 = (key0 + _WEYL[0]) & _LOW, (key1 + _WEYL[1]) & _LOW
    return [c0, c1, c2, c3]
