"""One Transformer block, pre-norm: x + attention(norm(x)), then x + mlp(norm(x)).

With model.parallel_residual both branches read the block's input (GPT-NeoX, arXiv:2204.06745,
section 2.1): x + attention(norm(x)) + mlp(other_norm(x)).

Legend: B micro-batch, T tokens, H hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from roots.config.model import ModelConfig
from roots.models.attention import SelfAttention
from roots.models.cache import LayerCache
from roots.models.geometry import GeometryMemo
from roots.models.mlp import MLP
from roots.models.norm import Norm
from roots.models.options import BuildOptions
from roots.ops import bias_dropout_add
from roots.parallel.mesh import Axis
from roots.parallel.recompute import recompute

Stream = tuple[Tensor, Tensor, Tensor]


class Block(nn.Module):
    """Block number `index` of the decoder, `name` = layers.{index} in global parameter names.

    With options.recompute "full" its activations are computed again in the backward pass, on every
    layout, because a pipeline stage calls the same forward; with "selective" its attention's are.

    Communication: forward two all-reduces over the tensor axis, backward two. With sequence
    parallelism x is this rank's part of the tokens, and each becomes an all-gather and a
    reduce-scatter; attention communicates over the context axis besides.
    """

    def __init__(
        self,
        model: ModelConfig,
        index: int,
        *,
        axis: Axis,
        options: BuildOptions,
        geometry: GeometryMemo,
    ) -> None:
        super().__init__()
        name = f"layers.{index}"
        self.name = name
        self.index = index
        options = options.of_block(index)
        self.attention_norm = Norm(model, name=f"{name}.attention_norm", axis=axis, options=options)
        self.attention = SelfAttention(model, name=f"{name}.attention", axis=axis, options=options)
        self.mlp_norm = Norm(model, name=f"{name}.mlp_norm", axis=axis, options=options)
        self.mlp = MLP(model, name=f"{name}.mlp", axis=axis, options=options)
        self.geometry = geometry
        self.parallel_residual = model.parallel_residual
        self.dropout_rate = model.dropout
        self.recompute = options.recompute == "full"
        self.ops = options.ops

    def forward(self, stream: Stream, cache: LayerCache | None = None) -> Stream:
        """(x_BTH, document_starts_BT, dropout_keys_B) -> the same with the next x_BTH.

        With a cache the document starts mark left padding (see GeometryMemo).
        """
        x_BTH, document_starts_BT, dropout_keys_B = stream
        if self.recompute and self.training and torch.is_grad_enabled():
            x_BTH = recompute(self._transform, x_BTH, document_starts_BT, dropout_keys_B)
        else:
            x_BTH = self._transform(x_BTH, document_starts_BT, dropout_keys_B, cache)
        return x_BTH, document_starts_BT, dropout_keys_B

    def _transform(
        self,
        x_BTH: Tensor,
        document_starts_BT: Tensor,
        dropout_keys_B: Tensor,
        cache: LayerCache | None = None,
    ) -> Tensor:
        geometry = self.geometry(document_starts_BT, None if cache is None else cache.length)
        masks = (dropout_keys_B, geometry.stream_positions_Z)
        branch = self.attention(self.attention_norm(x_BTH), dropout_keys_B, geometry, cache)
        if self.parallel_residual:
            mlp_branch = self.mlp(self.mlp_norm(x_BTH))
            x_BTH = self._add(x_BTH, branch, masks, "attention")
            return self._add(x_BTH, mlp_branch, masks, "mlp")
        if branch[1] is None and not self._drops:
            normal_BTH, x_BTH = self.mlp_norm(branch[0], residual_BTH=x_BTH)
        else:
            x_BTH = self._add(x_BTH, branch, masks, "attention")
            normal_BTH = self.mlp_norm(x_BTH)
        return self._add(x_BTH, self.mlp(normal_BTH), masks, "mlp")

    @property
    def _drops(self) -> bool:
        return self.training and self.dropout_rate > 0.0

    def _add(
        self,
        x_BTH: Tensor,
        branch: tuple[Tensor, Tensor | None],
        masks: tuple[Tensor, Tensor | None],
        name: str,
    ) -> Tensor:
        """x + dropout(y + bias); branch = (y_BTH, bias_H or None), masks = (keys_B, positions)."""
        dropout_keys_B, positions_T = masks
        y_BTH, bias_H = branch
        return bias_dropout_add(
            y_BTH,
            bias_H,
            x_BTH,
            self.dropout_rate if self._drops else 0.0,
            dropout_keys_B,
            f"{self.name}.{name}",
            positions_T=positions_T,
            implementation=self.ops.dropout,
        )
