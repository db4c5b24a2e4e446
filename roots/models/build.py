"""From the config to modules: the list of layers that models and pipeline stages are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import nn

from roots.config.model import ModelConfig
from roots.models.attention.geometry import GeometryMemo, LengthMemo
from roots.models.block import Block
from roots.models.decoder import Decoder, Parts
from roots.models.embedding import Embedding, EncoderEmbedding, PairEmbedding
from roots.models.encoder import Encoder
from roots.models.encoder_decoder import EncoderDecoder, SourceEncoder
from roots.models.head import HeadTransform, TiedHead, TokenTable
from roots.models.norm import FinalNorm
from roots.models.options import BuildOptions
from roots.models.pair_blocks import CrossBlock, EncoderBlock, MemoryNorm, SourceBlock
from roots.parallel.mesh import Mesh
from roots.parallel.placement import Placement

LayerKind = Literal["embedding", "source_block", "block", "norm", "transform", "head"]
TIED_KEY = "embedding"
# Where the tied matrix lies in the modules of both ends.
TIED_WEIGHT = "tokens.weight"


@dataclass(frozen=True)
class LayerFactory:
    """One layer of the model, not yet built.

    tied_key: equal for layers that share the matrix `TIED_WEIGHT`, None for the others
    """

    kind: LayerKind
    name: str
    build: Callable[[], nn.Module]
    tied_key: str | None = None


def model_layers(model: ModelConfig, mesh: Mesh, options: BuildOptions) -> list[LayerFactory]:
    """The layers of any architecture in order: embedding, [encoder,] blocks, final norm and
    transform where there are any, head.

    All but the head map the stream (models/block.py) to the next one; the embedding takes tokens in
    the place of vectors. The head maps x_BTH, labels_BT, loss_weights_BT to the loss, or x_BTH to
    logits. Blocks built from one list share what they derive from document starts and lengths, so a
    process builds from one list.
    """
    make = _Maker(model, mesh, options)
    tied_key = TIED_KEY if model.tied_embeddings else None
    final_norm = model.norm_position == "pre"
    layers = [LayerFactory("embedding", "embedding", make.embedding, tied_key)]
    for index in range(model.encoder_layers):
        build = partial(make.source_block, index)
        layers.append(LayerFactory("source_block", f"encoder.layers.{index}", build))
    if model.encoder_layers and final_norm:
        layers.append(LayerFactory("norm", "encoder.final_norm", make.memory_norm))
    for index in range(model.num_layers):
        layers.append(LayerFactory("block", f"layers.{index}", partial(make.block, index)))
    if final_norm:
        layers.append(LayerFactory("norm", "final_norm", make.final_norm))
    if model.head_transform:
        layers.append(LayerFactory("transform", "head_transform", make.head_transform))
    layers.append(LayerFactory("head", "head", make.head, tied_key))
    return layers


def build_model(
    model: ModelConfig, mesh: Mesh, *, options: BuildOptions
) -> Decoder | Encoder | EncoderDecoder:
    """Build the whole model of one pipeline stage; models/init.py or a checkpoint fills it.

    Raises RootsError if a dimension cannot be cut over the tensor axis.
    """
    layers = model_layers(model, mesh, options)
    built = {layer.name: layer.build() for layer in layers[1:-1]}
    # One stage holds both ends, so a tied head needs no copy.
    tied = model.tied_embeddings
    embedding = _Maker(model, mesh, options).embedding(is_head=tied)
    parts = Parts(
        layers=[built[layer.name] for layer in layers if layer.kind == "block"],
        final_norm=built.get("final_norm"),
        head_transform=built.get("head_transform"),
        head=None if tied else layers[-1].build(),
    )
    if isinstance(embedding, PairEmbedding):
        source_blocks = [built[layer.name] for layer in layers if layer.kind == "source_block"]
        encoder = SourceEncoder(source_blocks, built.get("encoder.final_norm"))
        return EncoderDecoder(model, embedding, encoder, parts)
    if isinstance(embedding, EncoderEmbedding):
        return Encoder(model, embedding, parts)
    return Decoder(model, embedding, parts)


class _Maker:
    """Makes the modules of one process, which share the memos of geometry."""

    def __init__(self, model: ModelConfig, mesh: Mesh, options: BuildOptions) -> None:
        axis = mesh.tensor
        self.model = model
        self.common: dict[str, Any] = {"axis": axis, "options": options}
        self.of_blocks: dict[str, Any] = {"mesh": mesh, "options": options}
        self.place = Placement.on(
            mesh, sequence=options.sequence_parallel, zigzag=options.context_method == "ring"
        )
        self.geometry = GeometryMemo(model, options, self.place)
        self.length_geometry = LengthMemo(model, options, axis)
        self.source_geometry = LengthMemo(model, options, axis, positions=False)

    def embedding(self, is_head: bool = False) -> Embedding:
        kinds = {
            "decoder": Embedding,
            "encoder": EncoderEmbedding,
            "encoder_decoder": PairEmbedding,
        }
        return kinds[self.model.architecture](
            self.model, place=self.place, is_head=is_head, **self.common
        )

    def block(self, index: int) -> nn.Module:
        if self.model.architecture == "encoder":
            return EncoderBlock(self.model, index, geometry=self.length_geometry, **self.of_blocks)
        if self.model.architecture == "decoder":
            return Block(self.model, index, geometry=self.geometry, **self.of_blocks)
        return CrossBlock(
            self.model,
            index,
            geometry=self.geometry,
            source_geometry=self.source_geometry,
            **self.of_blocks,
        )

    def source_block(self, index: int) -> nn.Module:
        return SourceBlock(self.model, index, geometry=self.length_geometry, **self.of_blocks)

    def memory_norm(self) -> nn.Module:
        return MemoryNorm(self.model, name="encoder.final_norm", **self.common)

    def final_norm(self) -> nn.Module:
        return FinalNorm(self.model, name="final_norm", **self.common)

    def head_transform(self) -> nn.Module:
        return HeadTransform(self.model, **self.common)

    def head(self) -> nn.Module:
        if self.model.tied_embeddings:
            return TiedHead(self.model, **self.common)
        return TokenTable(self.model, name="head", **self.common)
