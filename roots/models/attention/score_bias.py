"""Position encodings that bias attention scores, head by head: T5's relative one and ALiBi.

Legend: T query tokens, S key tokens, E buckets; n is this tensor rank's share of the heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from roots.config.model import ModelConfig
from roots.models.options import BuildOptions
from roots.parallel.mesh import Axis
from roots.parallel.shard import attach, even


class RelativeTable(nn.Module):
    """A learned bias for every bucket of distances and every head, heads cut over the tensor axis.

    One table serves all blocks of a stack (T5, arXiv:1910.10683, section 2.1). It is a layer's
    parameter at the first stage and travels in the stream, so that no stage needs a copy.

    Communication: none.
    """

    def __init__(self, model: ModelConfig, *, name: str, axis: Axis, options: BuildOptions) -> None:
        super().__init__()
        shape = (model.relative_buckets, model.num_heads)
        shard = even(f"{name}.weight", shape, 1, axis)
        self.weight = nn.Parameter(
            torch.empty(shard.local_shape, device=options.device, dtype=options.dtype)
        )
        attach(self.weight, shard, axis)

    def forward(self) -> Tensor:
        """The table as an activation, [E, n]: ZeRO-3 may take the parameter away afterwards."""
        return self.weight.clone()


def distances(num_queries: int, num_keys: int, device: torch.device) -> Tensor:
    """Key position minus query position, int64 [T, S]; the last query stands at the last key."""
    positions_T1 = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
    return torch.arange(num_keys, device=device) - positions_T1


def relative_buckets(
    distances_TS: Tensor, num_buckets: int, max_distance: int, *, bidirectional: bool
) -> Tensor:
    """The bucket of every distance, int64 in [0, num_buckets).

    Of the n buckets of one direction the first half holds one distance each; the others grow
    logarithmically up to max_distance, beyond which the last one is used:
        bucket(d) = d                                                          for d < n / 2
        bucket(d) = n/2 + floor(log(2d / n) / log(2 max_distance / n) n/2)     else, at most n - 1
    Bidirectional: keys before the query use the first half of the buckets, keys behind it the
    second. Causal: keys behind the query count as distance 0; they are masked anyway.
    """
    if bidirectional:
        num_buckets //= 2
        first_TS = (distances_TS > 0) * num_buckets
        distances_TS = distances_TS.abs()
    else:
        first_TS = torch.zeros_like(distances_TS)
        distances_TS = (-distances_TS).clamp_min(0)
    exact = num_buckets // 2
    # In float32 and in this order, as T5 computes it: floor() decides at the borders of buckets.
    ratio_TS = torch.log(distances_TS.clamp_min(1).float() / exact) / math.log(max_distance / exact)
    far_TS = exact + (ratio_TS * (num_buckets - exact)).to(torch.int64)
    far_TS = far_TS.clamp_max(num_buckets - 1)
    return first_TS + torch.where(distances_TS < exact, distances_TS, far_TS)


def relative_bias(buckets_TS: Tensor, table_En: Tensor) -> Tensor:
    """bias_1nTS of a head for every query and key; its gradient goes to the table."""
    return functional.embedding(buckets_TS, table_En).permute(2, 0, 1).unsqueeze(0)


def alibi_slopes(num_heads: int) -> list[float]:
    """What a head subtracts per token of distance (Press, Smith, Lewis, arXiv:2108.12409).

    For a power of two, head i of n has 2^(-8 (i + 1) / n). Otherwise the slopes of the next lower
    power come first and then every other one of twice that power.
    """
    power = 1 << (num_heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (head + 1) / power) for head in range(power)]
    between = [2.0 ** (-8.0 * (head + 1) / (2 * power)) for head in range(0, 2 * power, 2)]
    return slopes + between[: num_heads - power]


def alibi_bias(distances_TS: Tensor, num_heads: int, axis: Axis, dtype: torch.dtype) -> Tensor:
    """bias_1nTS = -slope_n |distance_TS| for this tensor rank's heads."""
    share = num_heads // axis.size
    mine = alibi_slopes(num_heads)[axis.rank * share : (axis.rank + 1) * share]
    slopes_n11 = torch.tensor(mine, device=distances_TS.device)[:, None, None]
    return (slopes_n11 * -distances_TS.abs()).to(dtype).unsqueeze(0)
