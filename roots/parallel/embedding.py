"""Vocabulary-parallel token embedding.

Legend: B micro-batch, T tokens, H hidden, V padded vocabulary, v this rank's rows of it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from roots.parallel.collectives import sum_parts
from roots.parallel.mesh import Axis
from roots.parallel.shard import attach, even


class VocabParallelEmbedding(nn.Module):
    """x_BTH = W_VH[tokens_BT], the rows of W spread evenly over `axis`.

    Values are uninitialised; models/init.py fills them. Token ids must lie in [0, padded_vocab);
    the data layer checks them.

    Communication: forward all-reduce of x (each rank adds the rows it holds); backward none. With
    sequence_dim x is this rank's slice along that dim: forward reduce-scatter, backward all-gather.
    Raises RootsError if padded_vocab is not divisible by the size of the axis.
    """

    def __init__(
        self,
        padded_vocab: int,
        hidden: int,
        *,
        name: str,
        axis: Axis,
        tied_to: str | None = None,
        sequence_dim: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.axis = axis
        self.sequence_dim = sequence_dim
        shard = even(f"{name}.weight", (padded_vocab, hidden), 0, axis, tied_to=tied_to)
        ((self.first, self.stop),) = shard.intervals
        self.weight = nn.Parameter(torch.empty(shard.local_shape, device=device, dtype=dtype))
        attach(self.weight, shard, axis)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """tokens_BT int64 -> x_BTH, equal on every rank of the axis, or its slice."""
        if self.axis.group is None:
            return functional.embedding(tokens_BT, self.weight)
        foreign_BT = (tokens_BT < self.first) | (tokens_BT >= self.stop)
        local_BT = (tokens_BT - self.first).masked_fill(foreign_BT, 0)
        x_BTH = functional.embedding(local_BT, self.weight)
        x_BTH = x_BTH.masked_fill(foreign_BT.unsqueeze(-1), 0.0)
        return sum_parts(x_BTH, self.axis, self.sequence_dim)

    def extra_repr(self) -> str:
        """Sizes, for printing the module."""
        rows, hidden = self.weight.shape
        return f"local rows={rows}, hidden={hidden}, {self.axis.name} axis of {self.axis.size}"
