"""All operators of a block go through torch.compile as one graph."""

from __future__ import annotations

import torch
from torch import Tensor

from roots import ops


def test_ops_compile_into_one_graph_with_equal_results() -> None:
    keys_B = torch.tensor([3, 4])
    document_starts_BT = torch.tensor([[0, 0, 0, 3, 3, 3, 3, 3], [0] * 8])
    cos, sin = ops.rotary_table(torch.arange(8), 16)
    labels_M = torch.arange(16)

    def block(q_BTND: Tensor, x_BTH: Tensor, weight_H: Tensor) -> Tensor:
        y_BTH = ops.rms_norm(x_BTH, weight_H) + ops.layer_norm(x_BTH, weight_H, weight_H)
        q_BTND = ops.rotary(q_BTND, cos, sin)
        o_BTND = ops.attention(q_BTND, q_BTND, q_BTND, document_starts_BT=document_starts_BT)
        drop = ops.AttentionDropout(0.1, keys_B, "weights")
        o_BTND = ops.attention(o_BTND, q_BTND, q_BTND, dropout=drop)
        y_BTH = ops.bias_dropout_add(o_BTND.flatten(2), weight_H, y_BTH, 0.1, keys_B, "out")
        y_BTH = ops.dropout(ops.bias_gelu(y_BTH, weight_H), 0.1, keys_B, "mlp")
        y_BTH = ops.swiglu(torch.cat((y_BTH, y_BTH), dim=-1))
        return ops.cross_entropy(y_BTH.flatten(0, 1), labels_M).sum()

    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 8, 4, 16), (2, 8, 64), (64,))
    ]
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    expected, actual = block(*inputs), compiled(*inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)
    for left, right in zip(
        torch.autograd.grad(actual, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-12)
