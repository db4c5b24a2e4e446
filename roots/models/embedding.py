"""Tokens in: their vectors, positions, segments, a norm and dropout; and the tied head's matrix.

Legend: B micro-batch, T tokens, S source tokens, H hidden, E relative buckets; n is this tensor
rank's share of the heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from roots.config.model import ModelConfig
from roots.models.attention.geometry import Past, token_positions
from roots.models.attention.score_bias import RelativeTable
from roots.models.block import Stream
from roots.models.head import TokenTable
from roots.models.norm import Norm
from roots.models.options import BuildOptions
from roots.ops import dropout
from roots.parallel.collectives import copy_to
from roots.parallel.mesh import Axis
from roots.parallel.placement import Placement
from roots.parallel.shard import attach, replicated

_SINUSOID_BASE = 10000.0


class VectorTable(nn.Module):
    """A table of learned vectors (of positions, of segments), whole on every tensor rank."""

    def __init__(
        self, rows: int, model: ModelConfig, *, name: str, axis: Axis, options: BuildOptions
    ) -> None:
        super().__init__()
        # With sequence parallelism each rank looks up the rows of other tokens.
        self.axis = axis if options.sequence_parallel else None
        shape = (rows, model.hidden_size)
        self.weight = nn.Parameter(torch.empty(shape, device=options.device, dtype=options.dtype))
        attach(self.weight, replicated(f"{name}.weight", shape), axis)

    def forward(self, rows: Tensor) -> Tensor:
        """Row numbers [T] or [B, T] -> vectors [..., H]."""
        weight = self.weight if self.axis is None else copy_to(self.weight, self.axis)
        return functional.embedding(rows, weight)


class Surroundings(nn.Module):
    """What token vectors become before the first block of a stack, by the fields of the config:

        x_BTH = dropout(norm(embedding_scale * token + position + segment))

    and the table of relative positions, which all blocks of the stack share.
    Communication: none; with sequence parallelism, backward an all-reduce of the gradients of
    tables and norm over the tensor axis.
    """

    def __init__(
        self, model: ModelConfig, length: int, *, name: str, axis: Axis, options: BuildOptions
    ) -> None:
        """`length`: the number of learned positions."""
        super().__init__()
        self.positions = self.token_types = self.norm = self.relative = None
        if model.position == "learned":
            self.positions = VectorTable(
                length, model, name=f"{name}.positions", axis=axis, options=options
            )
        if model.token_types:
            self.token_types = VectorTable(
                model.token_types, model, name=f"{name}.token_types", axis=axis, options=options
            )
        if model.embedding_norm:
            self.norm = Norm(model, name=f"{name}.norm", axis=axis, options=options)
        if model.position == "relative":
            self.relative = RelativeTable(
                model, name=f"{name}.relative", axis=axis, options=options
            )
        self.sinusoidal = model.position == "sinusoidal"
        self.scale = model.embedding_scale
        self.dropout_rate = model.dropout
        self.site = name
        self.ops = options.ops

    def surround(
        self,
        x_BTH: Tensor,
        positions: Tensor,
        dropout_keys_B: Tensor,
        stream_positions_T: Tensor | None = None,
    ) -> Tensor:
        """Token vectors at positions [T] or [B, T] -> what the first block reads.

        stream_positions_T: where they stand in the sample, if they are a part of it.
        """
        if self.scale != 1.0:
            x_BTH = x_BTH * self.scale
        if self.positions is not None:
            x_BTH = x_BTH + self.positions(positions)
        if self.sinusoidal:
            x_BTH = x_BTH + sinusoids(positions, x_BTH.shape[-1]).to(x_BTH.dtype)
        if self.token_types is not None:
            x_BTH = x_BTH + self.token_types(torch.zeros_like(positions))
        if self.norm is not None:
            x_BTH = self.norm(x_BTH)
        return dropout(
            x_BTH,
            self.dropout_rate if self.training else 0.0,
            dropout_keys_B,
            self.site,
            positions_T=stream_positions_T,
            implementation=self.ops.dropout,
        )

    def tables(self) -> list[Tensor]:
        """The relative table [E, n], if there is one."""
        return [] if self.relative is None else [self.relative()]


class Embedding(Surroundings):
    """The first layer of a decoder: token vectors and their surroundings.

    `is_head`: the matrix also is the head, on this pipeline stage.
    Communication: that of TokenTable and Surroundings.
    """

    def __init__(
        self,
        model: ModelConfig,
        *,
        axis: Axis,
        options: BuildOptions,
        place: Placement,
        is_head: bool = False,
    ) -> None:
        super().__init__(model, model.sequence_length, name="embedding", axis=axis, options=options)
        self.place = place
        self.tokens = TokenTable(
            model, name="embedding.tokens", axis=axis, options=options, is_head=is_head
        )
        self.reset_positions = options.reset_positions

    def forward(self, stream: Stream, past: Past = None) -> Stream:
        """(tokens_BT, document_starts_BT, dropout_keys_B) -> (x_BTH, [relative_En,] the others).

        Of a sample that several ranks share, tokens are those of this context rank, x those of this
        rank's stream, and document starts all (see roots.parallel.placement).
        `past`: with a cache, what it holds; document starts then mark left padding.
        """
        tokens_BT, marks, keys_B = stream
        return (self.embed(tokens_BT, marks, keys_B, past), *self.tables(), marks, keys_B)

    def embed(self, tokens_BT: Tensor, marks: Tensor, dropout_keys_B: Tensor, past: Past) -> Tensor:
        """tokens_BT -> x_BTH."""
        here_T = None
        if not self.place.whole:
            here_T = self.place.stream_positions(marks.shape[1], tokens_BT.device)
        positions = self._positions(tokens_BT, marks, past, here_T)
        return self.surround(self.tokens(tokens_BT), positions, dropout_keys_B, here_T)

    def _positions(
        self, tokens_BT: Tensor, marks: Tensor, past: Past, here_T: Tensor | None
    ) -> Tensor:
        reset = self.reset_positions or past is not None
        return token_positions(marks, past or 0, reset, here_T)


class EncoderEmbedding(Embedding):
    """The first layer of an encoder: (tokens_BT, lengths_B, dropout_keys_B) -> the same with x."""

    def _positions(
        self, tokens_BT: Tensor, marks: Tensor, past: Past, here_T: Tensor | None
    ) -> Tensor:
        return torch.arange(tokens_BT.shape[1], device=tokens_BT.device)


class PairEmbedding(Embedding):
    """The first layer of an encoder-decoder: one matrix for the tokens of source and target.

    The target's vectors travel through the stages of the encoder, B T H elements a micro-batch and
    stage; a copy of the matrix at the first stage of the decoder would have to be summed with this
    one in every step instead.
    """

    def __init__(
        self,
        model: ModelConfig,
        *,
        axis: Axis,
        options: BuildOptions,
        place: Placement,
        is_head: bool = False,
    ) -> None:
        super().__init__(model, axis=axis, options=options, place=place, is_head=is_head)
        self.source = Surroundings(
            model, model.source_tokens, name="embedding.source", axis=axis, options=options
        )

    def forward(self, stream: Stream, past: Past = None) -> Stream:
        """(tokens_BT, source_BS, document_starts_BT, source_lengths_B, dropout_keys_B) -> the
        stream of an encoder-decoder, see models/block.py."""
        tokens_BT, source_BS, starts_BT, lengths_B, keys_B = stream
        x_BTH = self.embed(tokens_BT, starts_BT, keys_B, past)
        memory_BSH = self.embed_source(source_BS, keys_B)
        tables = [*self.tables(), *self.source.tables()]
        return (x_BTH, memory_BSH, *tables, starts_BT, lengths_B, keys_B)

    def embed_source(self, source_BS: Tensor, dropout_keys_B: Tensor) -> Tensor:
        """source_BS -> memory_BSH before the first block of the encoder."""
        positions_S = torch.arange(source_BS.shape[1], device=source_BS.device)
        return self.source.surround(self.tokens(source_BS), positions_S, dropout_keys_B)


def sinusoids(positions: Tensor, size: int) -> Tensor:
    """Vectors of positions [...], float32 [..., size] (Vaswani et al. 2017, section 3.5):

        sin(p 10000^(-2i / size)) for i < size / 2, then the cosines of the same angles

    The paper's formula has sines and cosines alternate, its code has them in halves, as here.
    """
    steps = torch.arange(0, size, 2, dtype=torch.float64, device=positions.device)
    angles = positions.to(torch.float64)[..., None] * _SINUSOID_BASE ** (-steps / size)
    return torch.cat((angles.sin(), angles.cos()), dim=-1).float()
