"""Self-attention with fused QKV projection and grouped key/value heads.

Legend: B micro-batch, T query tokens, S key tokens, H hidden, D head size, E relative buckets; n
and k are this tensor rank's query and key/value heads, r the concatenated size (n + 2k) D of its
projections.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from roots.config.model import ModelConfig
from roots.models.attention.biased_attention import biased_attention
from roots.models.attention.cache import LayerCache
from roots.models.attention.geometry import Geometry
from roots.models.attention.rows import RowsLayer
from roots.models.attention.score_bias import relative_bias
from roots.models.norm import head_norms
from roots.models.options import BuildOptions
from roots.ops import AttentionDropout, attention, rotary
from roots.parallel.linear import ColumnParallelLinear, RowParallelLinear
from roots.parallel.mesh import Axis
from roots.parallel.recompute import recompute
from roots.parallel.ring import ring_attention
from roots.parallel.ulysses import ulysses_attention


class SelfAttention(nn.Module):
    """y_BTH = concat over heads(softmax(scale q k^T + bias) v) W_out^T, scale = 1 / sqrt(D).

    Each tensor rank computes whole heads (Megatron-LM, arXiv:1909.08053, section 3); `num_kv_heads`
    below `num_heads` shares each key/value head among a group (GQA, arXiv:2305.13245). With qk_norm
    queries and keys are normalised before they are rotated; with a window a token attends to that
    many, itself included (Mistral, arXiv:2310.06825). What can be seen is the geometry's matter:
    causal in decoders, the whole row in encoders. A bias of the scores (ALiBi, relative positions)
    takes the path of models/biased_attention.py; without one the fused op runs.

    Communication: that of the two linear layers (see roots.parallel.linear); where samples are cut
    over the context axis, that of ulysses_attention or ring_attention.
    """

    def __init__(
        self,
        model: ModelConfig,
        *,
        name: str,
        axis: Axis,
        options: BuildOptions,
        partial: bool = False,
    ) -> None:
        """`partial`: that of the output projection."""
        super().__init__()
        query_size, kv_size = model.num_heads * model.head_size, model.kv_heads * model.head_size
        chunks = [query_size, kv_size, kv_size]
        self.qkv = ColumnParallelLinear(
            model.hidden_size,
            sum(chunks),
            name=f"{name}.qkv",
            axis=axis,
            bias=model.has_qkv_bias,
            chunks=chunks,
            sequence_dim=options.sequence_dim,
            device=options.device,
            dtype=options.dtype,
        )
        self.output = RowParallelLinear(
            query_size,
            model.hidden_size,
            name=f"{name}.output",
            axis=axis,
            bias=model.bias,
            skip_bias=True,
            partial=partial,
            sequence_dim=options.sequence_dim,
            device=options.device,
            dtype=options.dtype,
        )
        self.query_norm, self.key_norm = head_norms(model, name=name, axis=axis, options=options)
        self.head_size = model.head_size
        self.window = model.window or 0
        self.scale = model.attention_scale
        self.local_sizes = [size // axis.size for size in chunks]
        self.first_head = axis.rank * (model.num_heads // axis.size)
        self.dropout_rate = model.attention_dropout
        self.site = f"{name}.probabilities"
        self.recompute = options.recompute == "selective"
        self.ops = options.ops

    def forward(
        self,
        x_BTH: Tensor,
        dropout_keys_B: Tensor,
        geometry: Geometry,
        cache: LayerCache | RowsLayer | None = None,
        relative_En: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """x_BTH -> y_BTH and the bias [H] that is still to be added to it, if there is one.

        A cache is appended to. `relative_En`: the table of a model with relative positions.
        """
        q_BTnD, k_BSkD, v_BSkD = self.heads(x_BTH, geometry)
        if isinstance(cache, LayerCache):
            k_BSkD, v_BSkD = cache.append(k_BSkD, v_BSkD)
        qkv = (q_BTnD, k_BSkD, v_BSkD)
        if isinstance(cache, RowsLayer):
            o_BTnD = self._attend_rows(qkv, dropout_keys_B, geometry, cache, relative_En)
        else:
            o_BTnD = self._attend(qkv, dropout_keys_B, geometry, relative_En)
        y_BTH, bias_H = self.output(o_BTnD.flatten(-2))
        return y_BTH, bias_H

    def heads(self, x_BTH: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor]:
        """q_BTnD, k_BSkD, v_BSkD of x_BTH as they are attended with: normalised and rotated."""
        qkv_BTr = self.qkv(x_BTH)
        q_BTnD, k_BSkD, v_BSkD = (
            part.unflatten(-1, (-1, self.head_size)) for part in qkv_BTr.split(self.local_sizes, -1)
        )
        if self.query_norm is not None and self.key_norm is not None:
            q_BTnD, k_BSkD = self.query_norm(q_BTnD), self.key_norm(k_BSkD)
        return self._rotated(q_BTnD, geometry), self._rotated(k_BSkD, geometry), v_BSkD

    def _attend_rows(
        self,
        qkv: tuple[Tensor, Tensor, Tensor],
        dropout_keys_B: Tensor,
        geometry: Geometry,
        cache: RowsLayer,
        relative_En: Tensor | None,
    ) -> Tensor:
        """o_1NnD of the pieces of rows that stand behind one another in (q, k, v), which are added
        to the cache."""
        parts = []
        for span, around in zip(cache.past.each, geometry.spans, strict=True):
            q_1TnD, k_1TkD, v_1TkD = (x[:, span.place] for x in qkv)
            k_1SkD, v_1SkD = cache.extend(span, k_1TkD, v_1TkD)
            parts.append(
                self._attend((q_1TnD, k_1SkD, v_1SkD), dropout_keys_B, around, relative_En)
            )
        return torch.cat(parts, dim=1)

    def _attend(
        self,
        qkv: tuple[Tensor, Tensor, Tensor],
        dropout_keys_B: Tensor,
        geometry: Geometry,
        relative_En: Tensor | None,
    ) -> Tensor:
        """o_BTnD of (q_BTnD, k_BSkD, v_BSkD): attention to all tokens of the sample, also to those
        of other context ranks, by the fused op or with biased scores."""
        q_BTnD, k_BSkD, v_BSkD = qkv
        context, implementation = geometry.context, self.ops.attention
        if context is not None and geometry.ring_ranges:
            if self.scale is not None:
                # The ring scales by 1 / sqrt(D).
                q_BTnD = q_BTnD * (self.scale * math.sqrt(self.head_size))
            ranges = geometry.ring_ranges
            return ring_attention(
                q_BTnD, k_BSkD, v_BSkD, ranges, context, implementation=implementation
            )
        first_head = self.first_head
        if context is not None:
            first_head += context.rank * (q_BTnD.shape[2] // context.size)
        attend = partial(
            self._op(geometry, relative_En),
            causal=geometry.causal,
            window=self.window,
            key_ranges=geometry.key_ranges,
            scale=self.scale,
            dropout=self._dropout(dropout_keys_B, first_head),
        )
        if context is not None:
            return ulysses_attention(q_BTnD, k_BSkD, v_BSkD, context, attend)
        return attend(q_BTnD, k_BSkD, v_BSkD)

    def _op(self, geometry: Geometry, relative_En: Tensor | None) -> Callable[..., Tensor]:
        """The fused op, or where scores are biased what adds the bias."""
        bias_1nTS = self.bias(geometry, relative_En)
        if bias_1nTS is None:
            recomputed = self.recompute and self.training
            return partial(attention, recompute=recomputed, implementation=self.ops.attention)
        biased = partial(biased_attention, bias_1NTS=bias_1nTS)
        if not (self.recompute and self.training):
            return biased
        # Here scores are stored, so computing them again saves memory.
        return lambda *qkv, **options: recompute(partial(biased, **options), *qkv)

    @staticmethod
    def bias(geometry: Geometry, relative_En: Tensor | None) -> Tensor | None:
        """What is added to the scores, bias_1nTS; None for nothing."""
        if relative_En is not None and geometry.buckets_TS is not None:
            return relative_bias(geometry.buckets_TS, relative_En)
        return geometry.bias_1nTS

    def _rotated(self, x_BTmD: Tensor, geometry: Geometry) -> Tensor:
        if geometry.cos is None or geometry.sin is None:
            return x_BTmD
        return rotary(
            x_BTmD,
            geometry.cos,
            geometry.sin,
            positions_BT=geometry.positions_BT,
            implementation=self.ops.rotary,
        )

    def _dropout(self, dropout_keys_B: Tensor, first_head: int) -> AttentionDropout | None:
        if not self.training or self.dropout_rate == 0.0:
            return None
        return AttentionDropout(self.dropout_rate, dropout_keys_B, self.site, first_head)
