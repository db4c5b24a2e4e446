"""The layer of experts against its formula, token by token; and what each of its parts promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from roots.models.moe.experts import _Combine, _Dispatch, grouped_linear, plan_dispatch
from roots.models.moe.layer import MoE
from roots.models.moe.routing import Routing, route
from tests.helpers.decoders import small_decoder, small_model

MOE: dict[str, Any] = {"num_experts": 5, "top_k": 2, "ffn_hidden_size": 24}
LLAMA = {"activation": "swiglu", "bias": False, "norm": "rms_norm"}


def layer_of(moe: dict[str, Any], **changes: Any) -> MoE:
    model = small_model(num_layers=1, moe={**MOE, **moe}, **{**LLAMA, **changes})
    layer = small_decoder(model).layers[0].mlp
    assert isinstance(layer, MoE)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(10)
    return layer


def by_the_formula(layer: MoE, x_BTH: Tensor, routing: Routing) -> Tensor:
    """Every token through every chosen expert, one at a time."""
    rows = []
    choices = zip(
        x_BTH.flatten(0, 1),
        routing.experts_BTk.flatten(0, 1).tolist(),
        routing.weights_BTk.flatten(0, 1),
        strict=True,
    )
    for x_H, experts, weights in choices:
        y_H = torch.zeros_like(x_H)
        for expert, weight in zip(experts, weights, strict=True):
            up, down = (getattr(layer.experts, f"{kind}_{expert}") for kind in ("up", "down"))
            gate_f, up_f = (up @ x_H).chunk(2)
            y_H = y_H + weight * (down @ (functional.silu(gate_f) * up_f))
        rows.append(y_H)
    y_BTH = torch.stack(rows).view_as(x_BTH)
    if layer.shared is not None:
        gate, up = functional.linear(x_BTH, layer.shared.up.weight).chunk(2, -1)
        shared_BTH = functional.linear(functional.silu(gate) * up, layer.shared.down.weight)
        if layer.shared_gate is not None:
            (weight_H,) = layer.shared_gate.weight
            shared_BTH = shared_BTH / (1 + (-(x_BTH * weight_H).sum(-1, keepdim=True)).exp())
        y_BTH = y_BTH + shared_BTH
    return y_BTH


@pytest.mark.parametrize(
    "moe",
    [
        {},
        {"top_k": 1},
        {"top_k": 5, "num_shared_experts": 2, "shared_ffn_hidden_size": 16},
        {"num_shared_experts": 2, "shared_expert_gate": True},
        {"capacity_factor": 0.6},
    ],
    ids=["top2", "top1", "all-and-shared", "gated-shared", "capacity"],
)
def test_layer_and_gradients_are_those_of_the_formula(moe: dict[str, Any]) -> None:
    """Router losses off: they have no part in the output."""
    layer = layer_of({**moe, "balance_loss": 0.0}).train()
    generator = torch.Generator().manual_seed(2)
    x_BTH = torch.randn((2, 9, 32), generator=generator, requires_grad=True)
    y_BTH, bias_H = layer(x_BTH)
    assert bias_H is None
    routing = route(layer.router(x_BTH), layer.moe, drops=True)
    expected_BTH = by_the_formula(layer, x_BTH, routing)
    torch.testing.assert_close(y_BTH, expected_BTH, rtol=1e-5, atol=1e-5)
    if "capacity_factor" in moe:
        assert routing.kept_BTk is not None
        assert not routing.kept_BTk.all()
    dy_BTH = torch.randn(y_BTH.shape, generator=generator)
    leaves = [x_BTH, *layer.parameters()]
    ours = torch.autograd.grad(y_BTH, leaves, dy_BTH)
    theirs = torch.autograd.grad(expected_BTH, leaves, dy_BTH, materialize_grads=True)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).norm() <= 1e-5 * other.norm()


def test_nothing_is_dropped_in_evaluation() -> None:
    """Whatever the capacity: then a layer is what it would be without one."""
    tight, free = (layer_of({"capacity_factor": factor}) for factor in (0.3, None))
    x_BTH = torch.randn((2, 9, 32), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.equal(tight.eval()(x_BTH)[0], free.eval()(x_BTH)[0])
        assert not torch.equal(tight.train()(x_BTH)[0], free.eval()(x_BTH)[0])


def test_gate_scales_the_bias_of_the_shared_experts_too() -> None:
    """What a token gets through the layer beyond its experts, with the gate and without."""
    layers = [
        layer_of({"num_shared_experts": 1, "shared_expert_gate": gate}, bias=True)
        for gate in (True, False)
    ]
    gated, plain = layers
    with torch.no_grad():
        for layer in layers:
            layer.shared.up.bias.fill_(0.3)
            layer.shared.down.bias.fill_(0.7)
    x_BTH = torch.randn((2, 9, 32), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        shared_BTH, bias_H = plain.shared(x_BTH)
        routed_BTH = plain(x_BTH)[0] - shared_BTH
        g_BT1 = (x_BTH @ gated.shared_gate.weight[0])[..., None].sigmoid()
        y_BTH, left_H = gated(x_BTH)
    assert left_H is None
    assert g_BT1.min() < 0.3 < 0.7 < g_BT1.max()
    torch.testing.assert_close(y_BTH, routed_BTH + g_BT1 * (shared_BTH + bias_H))


def test_an_expert_without_tokens_has_a_gradient_of_zeros() -> None:
    """A missing one would leave a rank out of the reduction that the others wait in."""
    layer = layer_of({"top_k": 1, "balance_loss": 0.0}).train()
    x_BTH = torch.ones((1, 3, 32))
    layer(x_BTH)[0].sum().backward()
    gradients = [parameter.grad for parameter in layer.experts.parameters()]
    assert all(gradient is not None for gradient in gradients)
    assert sum(bool(gradient.any()) for gradient in gradients if gradient is not None) == 2


def test_router_is_fp32_whatever_the_dtype_of_the_model() -> None:
    layer = layer_of({}).to(torch.bfloat16).train()
    x_BTH = torch.randn((2, 9, 32), generator=torch.Generator().manual_seed(2)).bfloat16()
    logits_BTE = layer.router(x_BTH)
    expected = functional.linear(x_BTH.double(), layer.router.weight.double())
    assert logits_BTE.dtype == torch.float32
    torch.testing.assert_close(logits_BTE.double(), expected, rtol=1e-5, atol=1e-5)
    assert layer(x_BTH)[0].dtype == torch.bfloat16


def test_choices_are_sorted_by_expert_and_dropped_ones_come_last() -> None:
    experts_Nk = torch.tensor([[2, 0], [0, 1], [2, 0]])
    kept_Nk = torch.tensor([[True, True], [True, True], [True, False]])
    plan = plan_dispatch(experts_Nk, kept_Nk, num_experts=4)
    assert plan.order_M.tolist() == [1, 2, 3, 0, 4, 5]
    assert plan.counts_E.tolist() == [2, 1, 2, 0]
    assert plan.slot_Nk.tolist() == [[3, 0], [1, 2], [4, 4]]


def test_grouped_linear_takes_each_block_through_its_own_matrix() -> None:
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn((7, 3), generator=generator, dtype=torch.float64, requires_grad=True)
    weights = [
        torch.randn((4, 3), generator=generator, dtype=torch.float64, requires_grad=True)
        for _ in range(3)
    ]
    y = grouped_linear(rows, weights, [3, 0, 4])
    assert torch.equal(y, torch.cat([rows[:3] @ weights[0].t(), rows[3:] @ weights[2].t()]))
    assert torch.autograd.gradcheck(
        lambda x, *matrices: grouped_linear(x, matrices, [3, 0, 4]), (rows, *weights)
    )


def test_what_a_tokens_choices_give_is_added_in_fp32() -> None:
    """Seven parts of 2^-9 beside a 1: none of them alone would change a bf16 sum."""
    parts_8 = torch.tensor([1.0, *[2.0**-9] * 7])
    expected = torch.tensor(1 + 7 * 2.0**-9).bfloat16()
    assert expected > 1
    order_M, slot_Nk = torch.arange(8), torch.arange(8)[None]
    rows_MH = torch.ones((8, 4), dtype=torch.bfloat16)
    y_NH = _Combine.apply(rows_MH, parts_8[None], order_M, slot_Nk)
    assert torch.equal(y_NH, expected.expand(1, 4))
    x_NH = torch.ones((1, 4), dtype=torch.bfloat16, requires_grad=True)
    sent_MH = _Dispatch.apply(x_NH, order_M, slot_Nk, None)
    sent_MH.backward(parts_8[:, None].expand(8, 4).bfloat16())
    assert x_NH.grad is not None
    assert torch.equal(x_NH.grad, expected.expand(1, 4))
