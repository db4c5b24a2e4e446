"""Cross-attention: a decoder's queries read the keys and values of an encoder's output.

Legend: B micro-batch, T query tokens, S source tokens, H hidden, D head size; n and k are this
tensor rank's query and key/value heads.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from roots.config.model import ModelConfig
from roots.models.attention.cache import LayerCache
from roots.models.attention.geometry import Geometry
from roots.models.norm import head_norms
from roots.models.options import BuildOptions
from roots.ops import AttentionDropout, attention
from roots.parallel.linear import ColumnParallelLinear, RowParallelLinear
from roots.parallel.mesh import Axis


class CrossAttention(nn.Module):
    """y_BTH = concat over heads(softmax(scale q k^T) v) W_out^T; q of x, k and v of the memory.

    Keys and values are one fused projection of the memory. Padding of the source is hidden by the
    key ranges of the geometry; positions play no part. Heads are cut as in SelfAttention.

    Communication: forward all-reduce of y; backward all-reduces of dx and of the memory's gradient.
    """

    def __init__(self, model: ModelConfig, *, name: str, axis: Axis, options: BuildOptions) -> None:
        super().__init__()
        query_size, kv_size = model.num_heads * model.head_size, model.kv_heads * model.head_size
        column = partial(
            ColumnParallelLinear,
            model.hidden_size,
            axis=axis,
            bias=model.has_qkv_bias,
            device=options.device,
            dtype=options.dtype,
        )
        self.query = column(query_size, name=f"{name}.query")
        self.kv = column(2 * kv_size, name=f"{name}.kv", chunks=[kv_size, kv_size])
        self.output = RowParallelLinear(
            query_size,
            model.hidden_size,
            name=f"{name}.output",
            axis=axis,
            bias=model.bias,
            skip_bias=True,
            device=options.device,
            dtype=options.dtype,
        )
        self.query_norm, self.key_norm = head_norms(model, name=name, axis=axis, options=options)
        self.head_size = model.head_size
        self.scale = model.attention_scale
        self.first_head = axis.rank * (model.num_heads // axis.size)
        self.dropout_rate = model.attention_dropout
        self.site = f"{name}.probabilities"
        self.ops = options.ops

    def forward(
        self,
        x_BTH: Tensor,
        memory_BSH: Tensor,
        dropout_keys_B: Tensor,
        geometry: Geometry,
        cache: LayerCache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """x_BTH -> y_BTH and the bias [H] that is still to be added to it, if there is one.

        With a cache the memory is projected at the first call only.
        """
        q_BTnD = self.query(x_BTH).unflatten(-1, (-1, self.head_size))
        if self.query_norm is not None:
            q_BTnD = self.query_norm(q_BTnD)
        if cache is None:
            k_BSkD, v_BSkD = self._keys_and_values(memory_BSH)
        else:
            if cache.source is None:
                cache.source = self._keys_and_values(memory_BSH)
            k_BSkD, v_BSkD = cache.source
        o_BTnD = attention(
            q_BTnD,
            k_BSkD,
            v_BSkD,
            causal=False,
            key_ranges=geometry.key_ranges,
            scale=self.scale,
            dropout=self._dropout(dropout_keys_B),
            implementation=self.ops.attention,
        )
        y_BTH, bias_H = self.output(o_BTnD.flatten(-2))
        return y_BTH, bias_H

    def _keys_and_values(self, memory_BSH: Tensor) -> tuple[Tensor, Tensor]:
        k_BSkD, v_BSkD = (
            part.unflatten(-1, (-1, self.head_size)) for part in self.kv(memory_BSH).chunk(2, -1)
        )
        return k_BSkD if self.key_norm is None else self.key_norm(k_BSkD), v_BSkD

    def _dropout(self, dropout_keys_B: Tensor) -> AttentionDropout | None:
        if not self.training or self.dropout_rate == 0.0:
            return None
        return AttentionDropout(self.dropout_rate, dropout_keys_B, self.site, self.first_head)
