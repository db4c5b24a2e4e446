"""Blocks of encoders, and those of an encoder-decoder, which share one stream.

Legend: B micro-batch, T target tokens, S source tokens, H hidden.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from roots.config.model import ModelConfig
from roots.models.attention.cache import LayerCache
from roots.models.attention.cross_attention import CrossAttention
from roots.models.attention.geometry import Geometry, GeometryMemo, LengthMemo
from roots.models.block import Block, Branch, Stream
from roots.models.norm import Norm
from roots.models.options import BuildOptions
from roots.parallel.mesh import Mesh


class EncoderBlock(Block):
    """A bidirectional block: every token of a row sees all of its `length` first tokens."""

    def _geometry(self, x_BTH: Tensor, marks: Tensor, cache: LayerCache | None) -> Geometry:
        return self.geometry(marks, x_BTH.shape[1])


class SourceBlock(EncoderBlock):
    """A block of the encoder of an encoder-decoder: it turns the memory and lets x_BTH pass.

    The last one takes the encoder's relative table out of the stream: DeepSpeed's pipeline expects
    a gradient for every floating tensor that a stage is sent, and no later block gives it one.
    """

    def __init__(
        self,
        model: ModelConfig,
        index: int,
        *,
        mesh: Mesh,
        options: BuildOptions,
        geometry: LengthMemo,
    ) -> None:
        super().__init__(
            model,
            index,
            mesh=mesh,
            options=options,
            geometry=geometry,
            name=f"encoder.layers.{index}",
        )
        self.is_last = index == model.encoder_layers - 1

    def forward(self, stream: Stream, cache: LayerCache | None = None) -> Stream:
        """The stream with the next memory_BSH."""
        x_BTH, memory_BSH, *tables, starts_BT, lengths_B, keys_B = stream
        memory_BSH = self.run(memory_BSH, *tables[1:], lengths_B, keys_B)
        kept = tables[:1] if self.is_last else tables
        return (x_BTH, memory_BSH, *kept, starts_BT, lengths_B, keys_B)


class MemoryNorm(Norm):
    """The norm behind the last block of an encoder that a decoder reads."""

    def forward(self, stream: Stream) -> Stream:  # type: ignore[override]
        """The stream with the memory normalised."""
        x_BTH, memory_BSH, *others = stream
        return (x_BTH, super().forward(memory_BSH), *others)


class CrossBlock(Block):
    """A causal block that reads the memory between its self-attention and its MLP.

    Communication: forward three all-reduces over the tensor axis, backward four.
    """

    def __init__(
        self,
        model: ModelConfig,
        index: int,
        *,
        mesh: Mesh,
        options: BuildOptions,
        geometry: GeometryMemo,
        source_geometry: LengthMemo,
    ) -> None:
        super().__init__(model, index, mesh=mesh, options=options, geometry=geometry)
        name, axis = f"{self.name}.cross", mesh.tensor
        self.cross_norm = Norm(model, name=f"{name}_norm", axis=axis, options=options)
        self.cross = CrossAttention(model, name=name, axis=axis, options=options)
        self.source_geometry = source_geometry

    def _transform(self, x_BTH: Tensor, *others: Tensor, cache: LayerCache | None = None) -> Tensor:
        memory_BSH, *tables, starts_BT, lengths_B, keys_B = others
        source = self.source_geometry(lengths_B, x_BTH.shape[1])
        geometry = self._geometry(x_BTH, starts_BT, cache)
        attention = self._attention(geometry, keys_B, cache, tables)
        read = partial(
            self.cross,
            memory_BSH=memory_BSH,
            dropout_keys_B=keys_B,
            geometry=source,
            cache=cache,
        )
        cross = Branch("cross", self.cross_norm, read)
        mlp = Branch("mlp", self.mlp_norm, self.mlp)
        return self._through(x_BTH, (attention, cross, mlp), (keys_B, None))
