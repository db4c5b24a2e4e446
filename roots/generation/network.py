"""A decoder on this rank's part of a layout, which reads pieces of rows.

Legend: N tokens of all pieces, M of them whose next token is asked for, V vocabulary, H hidden, E
relative buckets; n is this tensor rank's share of the heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from roots.config.model import ModelConfig
from roots.models.attention.rows import Rows
from roots.models.build import LayerKind
from roots.models.decoder import Decoder
from roots.parallel.mesh import Axis, Mesh
from roots.parallel.process import broadcast_object, receive, send_on

Result = TypeVar("Result")


class Piece(NamedTuple):
    """Tokens that follow what `row` has read."""

    row: int
    token_ids: Sequence[int]


@dataclass(frozen=True)
class StageLayers:
    """The layers of one pipeline stage: an embedding at the first, a head at the last.

    The head of a tied model of one stage is the matrix of its embedding.
    """

    embedding: nn.Module | None
    blocks: Sequence[nn.Module]
    final_norm: nn.Module | None
    head_transform: nn.Module | None
    head: nn.Module | None

    @staticmethod
    def of(decoder: Decoder) -> StageLayers:
        """All layers of a decoder of one stage."""
        head = decoder.embedding.tokens if decoder.head is None else decoder.head
        return StageLayers(
            decoder.embedding, [*decoder.layers], decoder.final_norm, decoder.head_transform, head
        )

    @staticmethod
    def of_kinds(layers: Iterable[tuple[LayerKind, nn.Module]]) -> StageLayers:
        """The layers of a stage of a decoder, in their order."""
        held = list(layers)

        def only(kind: LayerKind) -> nn.Module | None:
            return next((layer for of_kind, layer in held if of_kind == kind), None)

        return StageLayers(
            embedding=only("embedding"),
            blocks=[layer for kind, layer in held if kind == "block"],
            final_norm=only("norm"),
            head_transform=only("transform"),
            head=only("head"),
        )

    @property
    def modules(self) -> nn.ModuleList:
        """All of them."""
        single = (self.embedding, self.final_norm, self.head_transform, self.head)
        return nn.ModuleList([*self.blocks, *(each for each in single if each is not None)])


class Network:
    """A decoder that reads rows at their own pace, on this rank of its layout.

    Every rank that shares the model calls `read` with the same arguments and has the same result.
    Communication of a call: that of the layers over the tensor and expert axes; x once from each
    pipeline stage to the next, and the result from the last to all.
    """

    def __init__(self, model: ModelConfig, layers: StageLayers, mesh: Mesh) -> None:
        parameter = next(layers.modules.parameters())
        self.model = model
        self.mesh = mesh
        self.layers = layers
        self.dtype = parameter.dtype
        self.device = parameter.device

    @staticmethod
    def of(decoder: Decoder, mesh: Mesh | None = None) -> Network:
        """A decoder of one stage, on this process (None) or the mesh that it was built on."""
        return Network(decoder.model, StageLayers.of(decoder), mesh or Mesh.single())

    @property
    def stages(self) -> Axis:
        """The pipeline stages that share the model."""
        return self.mesh.pipeline

    def rows(self) -> Rows:
        """An empty cache."""
        return Rows.of(
            self.model,
            self.mesh.tensor,
            layers=len(self.layers.blocks),
            dtype=self.dtype,
            device=self.device,
        )

    @torch.no_grad()
    def read(
        self,
        rows: Rows,
        pieces: Sequence[Piece],
        at: Sequence[int],
        digest: Callable[[Tensor], Result],
    ) -> Result:
        """Read all pieces in one pass; `digest` of logits_MV behind the tokens `at`.

        rows:   of `rows()`; they have read the pieces afterwards
        at:     places in the row of all pieces, one behind the other
        digest: runs where the logits are (on every tensor rank of the last stage); what it returns
                must be small, and a thing that can be pickled where there are several stages
        """
        past = rows.begin([(piece.row, len(piece.token_ids)) for piece in pieces])
        ids = [token for piece in pieces for token in piece.token_ids]
        tokens_1N = torch.tensor([ids], device=self.device)
        # Rows, and not document starts, say what stands where; nothing is dropped.
        unread = (torch.zeros_like(tokens_1N), tokens_1N.new_zeros(1))
        embedding = self.layers.embedding
        if embedding is None:
            stream = (*self._received(len(ids)), *unread)
        else:
            stream = embedding((tokens_1N, *unread), past)
        for block, cache in zip(self.layers.blocks, rows.layers, strict=True):
            stream = block(stream, cache)
        rows.finish()
        stages = self.stages
        if stages.rank < stages.size - 1:
            send_on(stream[: -len(unread)], stages)
            return broadcast_object(stages, None, stages.size - 1)  # type: ignore[return-value]
        result = digest(self._logits(stream, at))
        return broadcast_object(stages, result, stages.size - 1)

    def _received(self, num_tokens: int) -> list[Tensor]:
        """x_1NH and, of a model with relative positions, their table [E, n]."""
        model = self.model
        shapes: list[tuple[int, ...]] = [(1, num_tokens, model.hidden_size)]
        if model.position == "relative":
            shapes.append((model.relative_buckets, model.num_heads // self.mesh.tensor.size))
        return receive(shapes, self.stages, dtype=self.dtype, device=self.device)

    def _logits(self, stream: tuple[Tensor, ...], at: Sequence[int]) -> Tensor:
        """logits_MV of the last stage's stream."""
        layers = self.layers
        assert layers.head is not None, "the last stage has the head"
        stream = (stream[0][:, list(at)], *stream[1:])
        for each in (layers.final_norm, layers.head_transform):
            if each is not None:
                stream = each(stream)
        logits_1MV: Tensor = layers.head(stream[0])
        return logits_1MV[0]
