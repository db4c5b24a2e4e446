"""Tokens in, and the matrix that also is the head of a tied model.

Legend: B micro-batch, T tokens, H hidden, V padded vocabulary, v this rank's rows of it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from roots.config.model import ModelConfig
from roots.models.block import Stream
from roots.models.geometry import token_positions
from roots.models.head import TokenTable
from roots.models.options import BuildOptions
from roots.ops import dropout
from roots.parallel.collectives import copy_to
from roots.parallel.mesh import Axis
from roots.parallel.placement import Placement
from roots.parallel.shard import attach, replicated


class PositionTable(nn.Module):
    """Learned position vectors, whole on every tensor rank."""

    def __init__(self, model: ModelConfig, *, name: str, axis: Axis, options: BuildOptions) -> None:
        super().__init__()
        # With sequence parallelism each rank looks up the positions of other tokens.
        self.axis = axis if options.sequence_parallel else None
        shape = (model.sequence_length, model.hidden_size)
        self.weight = nn.Parameter(torch.empty(shape, device=options.device, dtype=options.dtype))
        attach(self.weight, replicated(f"{name}.weight", shape), axis)

    def forward(self, positions: Tensor) -> Tensor:
        """positions [T] or [B, T], below sequence_length -> vectors [..., H]."""
        weight = self.weight if self.axis is None else copy_to(self.weight, self.axis)
        return functional.embedding(positions, weight)


class Embedding(nn.Module):
    """x_BTH = tokens.weight[token] + positions.weight[position], with dropout: the first layer.

    Communication: that of TokenTable; with sequence parallelism, backward an all-reduce of the
    gradient of the position table over the tensor axis.
    """

    def __init__(
        self, model: ModelConfig, *, axis: Axis, options: BuildOptions, place: Placement
    ) -> None:
        super().__init__()
        self.place = place
        self.tokens = TokenTable(model, name="embedding.tokens", axis=axis, options=options)
        self.positions: PositionTable | None = None
        if model.position == "learned":
            self.positions = PositionTable(
                model, name="embedding.positions", axis=axis, options=options
            )
        self.reset_positions = options.reset_positions
        self.dropout_rate = model.dropout
        self.ops = options.ops

    def forward(self, stream: Stream, past: int | None = None) -> Stream:
        """(tokens_BT, document_starts_BT, dropout_keys_B) -> the same with x_BTH for the tokens.

        Of a sample that several ranks share, tokens are those of this context rank, x those of this
        rank's stream, and document starts all (see roots.parallel.placement).
        `past`: with a cache, the tokens it holds; document starts then mark left padding.
        """
        tokens_BT, document_starts_BT, dropout_keys_B = stream
        x_BTH = self.tokens(tokens_BT)
        positions_T = None
        if not self.place.whole:
            length = document_starts_BT.shape[1]
            positions_T = self.place.stream_positions(length, tokens_BT.device)
        if self.positions is not None:
            reset = self.reset_positions or past is not None
            x_BTH = x_BTH + self.positions(
                token_positions(document_starts_BT, past or 0, reset, positions_T)
            )
        x_BTH = dropout(
            x_BTH,
            self.dropout_rate if self.training else 0.0,
            dropout_keys_B,
            "embedding",
            positions_T=positions_T,
            implementation=self.ops.dropout,
        )
        return x_BTH, document_starts_BT, dropout_keys_B
