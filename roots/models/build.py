"""From the config to modules: the list of layers that decoder and pipeline stages are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from roots.config.model import ModelConfig
from roots.models.block import Block
from roots.models.decoder import Decoder
from roots.models.embedding import Embedding
from roots.models.geometry import GeometryMemo
from roots.models.head import TiedHead, TokenTable
from roots.models.norm import FinalNorm
from roots.models.options import BuildOptions
from roots.parallel.mesh import Mesh
from roots.parallel.placement import Placement
from roots.planner.parameters import block_parameters, count_parameters, norm_parameters

TIED_KEY = "embedding"
# Where the tied matrix lies in the modules of both ends.
TIED_WEIGHT = "tokens.weight"


@dataclass(frozen=True)
class LayerFactory:
    """One layer of the decoder, not yet built.

    parameter_count: parameters of the global (unsharded) layer; a tied head counts its own copy,
                     which it has where it is built on another stage than the embedding
    tied_key:        equal for layers that share the matrix `TIED_WEIGHT`, None for the others
    """

    kind: Literal["embedding", "block", "norm", "head"]
    name: str
    build: Callable[[], nn.Module]
    parameter_count: int
    tied_key: str | None = None


def decoder_layers(model: ModelConfig, mesh: Mesh, options: BuildOptions) -> list[LayerFactory]:
    """The decoder in order: embedding, blocks, final norm, head.

    All but the head map (x, document_starts_BT, dropout_keys_B) to the same with the next x; the
    head maps x_BTH, labels_BT, loss_weights_BT to the loss, or x_BTH to logits. Blocks built from
    one list share what they derive from the document starts, so a process builds from one list.
    """
    axis = mesh.tensor
    place = Placement.on(
        mesh, sequence=options.sequence_parallel, zigzag=options.context_method == "ring"
    )
    geometry = GeometryMemo(model, options, place)
    counts = count_parameters(model)
    tied_key = TIED_KEY if model.tied_embeddings else None

    def block(index: int) -> LayerFactory:
        def build() -> nn.Module:
            return Block(model, index, axis=axis, options=options, geometry=geometry)

        return LayerFactory("block", f"layers.{index}", build, block_parameters(model))

    def embedding() -> nn.Module:
        return Embedding(model, axis=axis, options=options, place=place)

    def final_norm() -> nn.Module:
        return FinalNorm(model, name="final_norm", axis=axis, options=options)

    def head() -> nn.Module:
        if model.tied_embeddings:
            return TiedHead(model, axis=axis, options=options)
        return TokenTable(model, name="head", axis=axis, options=options)

    table_size = counts.token_embedding
    embedding_size = table_size + counts.position_embedding
    return [
        LayerFactory("embedding", "embedding", embedding, embedding_size, tied_key),
        *(block(index) for index in range(model.num_layers)),
        LayerFactory("norm", "final_norm", final_norm, norm_parameters(model)),
        LayerFactory("head", "head", head, table_size, tied_key),
    ]


def build_decoder(model: ModelConfig, mesh: Mesh, *, options: BuildOptions) -> Decoder:
    """Build the whole decoder of one pipeline stage; models/init.py or a checkpoint fills it.

    Raises RootsError if a dimension cannot be cut over the tensor axis.
    """
    embedding, *middle, final_norm, head = decoder_layers(model, mesh, options)
    first, last = embedding.build(), final_norm.build()
    assert isinstance(first, Embedding)
    assert isinstance(last, FinalNorm)
    layers = [layer.build() for layer in middle]
    # One stage holds both ends, so a tied head needs no copy.
    return Decoder(model, first, layers, last, None if head.tied_key else head.build())
