"""Cross-attention against its formula, with every field that it reads off the default.

Legend: B rows, T query tokens, S source tokens, N query heads, K key heads, D head size.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from roots.config.model import ModelConfig
from roots.models.attention.cross_attention import CrossAttention
from roots.models.attention.geometry import LengthMemo
from roots.models.init import initialise
from roots.models.options import BuildOptions
from roots.parallel.mesh import Mesh

LENGTHS_B = torch.tensor([9, 4])


def model_of(**fields: Any) -> ModelConfig:
    shape = {"hidden_size": 32, "num_heads": 4, "num_layers": 1, "sequence_length": 12}
    return ModelConfig(architecture="encoder_decoder", init_std=0.3, **{**shape, **fields})


def layer_of(model: ModelConfig) -> CrossAttention:
    axis = Mesh.single().tensor
    layer = CrossAttention(model, name="layers.0.cross", axis=axis, options=BuildOptions())
    initialise(layer, 1, model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        # Norms and biases start alike everywhere, and would not show.
        for parameter in layer.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return layer


def normalised(x: Tensor, norm: Any, model: ModelConfig) -> Tensor:
    """Every head of x by torch's own layer norm."""
    if norm is None:
        return x
    return functional.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, model.norm_epsilon)


def by_the_formula(layer: CrossAttention, model: ModelConfig, x: Tensor, memory: Tensor) -> Tensor:
    heads, size = model.num_heads, model.head_size
    query = functional.linear(x, layer.query.weight, layer.query.bias)
    keys, values = functional.linear(memory, layer.kv.weight, layer.kv.bias).chunk(2, -1)
    q_BTND = normalised(query.unflatten(-1, (heads, size)), layer.query_norm, model)
    k_BSKD = normalised(keys.unflatten(-1, (-1, size)), layer.key_norm, model)
    v_BSKD = values.unflatten(-1, (-1, size))
    group = heads // model.kv_heads
    k_BSND, v_BSND = (each.repeat_interleave(group, dim=2) for each in (k_BSKD, v_BSKD))
    scale = size**-0.5 if model.attention_scale is None else model.attention_scale
    scores = torch.einsum("btnd,bsnd->bnts", q_BTND, k_BSND) * scale
    hidden_BS = torch.arange(memory.shape[1]) >= LENGTHS_B[:, None]
    weights = scores.masked_fill(hidden_BS[:, None, None], -torch.inf).softmax(-1)
    o_BTND = torch.einsum("bnts,bsnd->btnd", weights, v_BSND)
    return functional.linear(o_BTND.flatten(-2), layer.output.weight, layer.output.bias)


@pytest.mark.parametrize(
    "fields",
    [{}, {"qk_norm": True}, {"num_kv_heads": 2}, {"attention_scale": 0.7}],
    ids=["plain", "qk_norm", "grouped", "scaled"],
)
def test_layer_is_the_formula(fields: dict[str, Any]) -> None:
    model = model_of(**fields)
    layer = layer_of(model)
    generator = torch.Generator().manual_seed(2)
    x_BTH = torch.randn((2, 5, 32), generator=generator)
    memory_BSH = torch.randn((2, 9, 32), generator=generator)
    memo = LengthMemo(model, BuildOptions(), Mesh.single().tensor, positions=False)
    keys_B = torch.zeros(2, dtype=torch.int64)
    y_BTH, bias_H = layer(x_BTH, memory_BSH, keys_B, memo(LENGTHS_B, 5))
    assert bias_H is not None
    expected_BTH = by_the_formula(layer, model, x_BTH, memory_BSH)
    torch.testing.assert_close(y_BTH + bias_H, expected_BTH, rtol=1e-5, atol=1e-5)
