"""Routing: weights as in Mixtral, capacity by position, and auxiliary losses in the gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from roots.config.moe import MoEConfig
from roots.models.moe.routing import (
    RouterRecord,
    balance_loss,
    expert_counts,
    route,
    with_auxiliary_losses,
    within_capacity,
    z_loss,
)
from roots.parallel.mesh import Mesh

CONTEXT = Mesh.single().context


def random_logits(rows: int = 3, length: int = 20, experts: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn((rows, length, experts), generator=generator)


def test_normalised_weights_are_the_softmax_over_the_chosen_logits() -> None:
    logits_BTE = random_logits()
    routing = route(logits_BTE, MoEConfig(num_experts=6, top_k=3), drops=True)
    chosen_BTk = logits_BTE.gather(2, routing.experts_BTk)
    assert torch.equal(chosen_BTk, logits_BTE.topk(3).values)
    torch.testing.assert_close(routing.weights_BTk, chosen_BTk.softmax(-1))
    assert routing.kept_BTk is None


@pytest.mark.parametrize(("top_k", "normalise"), [(1, None), (3, False)])
def test_other_weights_are_those_of_the_softmax_over_all(
    top_k: int, normalise: bool | None
) -> None:
    """Of a single expert's too, or they would all be 1 and teach the router nothing."""
    logits_BTE = random_logits()
    moe = MoEConfig(num_experts=6, top_k=top_k, normalise_weights=normalise)
    routing = route(logits_BTE, moe, drops=True)
    expected = logits_BTE.softmax(-1).topk(top_k).values
    torch.testing.assert_close(routing.weights_BTk, expected)


def test_capacity_is_first_come_first_served_in_every_sequence() -> None:
    experts_BTk = torch.tensor([[[0, 1], [0, 2], [1, 0], [2, 0]], [[2, 1], [1, 2], [2, 0], [1, 0]]])
    kept = within_capacity(experts_BTk, num_experts=3, capacity=2)
    assert kept.tolist() == [
        [[True, True], [True, True], [True, False], [True, False]],
        [[True, True], [True, True], [False, True], [False, True]],
    ]


def test_dropped_choices_weigh_nothing_and_only_where_drops_are_asked_for() -> None:
    logits_BTE = random_logits()
    moe = MoEConfig(num_experts=6, top_k=2, capacity_factor=0.5)
    routing = route(logits_BTE, moe, drops=True)
    assert routing.kept_BTk is not None
    # 0.5 x 2 x 20 / 6, rounded up, of every expert and sequence.
    counts_BE = expert_counts(routing.experts_BTk, 6)
    kept_BE = torch.stack([(routing.experts_BTk == e) & routing.kept_BTk for e in range(6)], -1)
    assert torch.equal(kept_BE.sum((1, 2)), counts_BE.clamp(max=4))
    free = route(logits_BTE, moe, drops=False)
    assert torch.equal(routing.weights_BTk, free.weights_BTk * routing.kept_BTk)
    assert free.kept_BTk is None


def test_no_token_is_dropped_because_of_a_later_one() -> None:
    logits_BTE = random_logits(rows=1)
    moe = MoEConfig(num_experts=6, top_k=2, capacity_factor=0.5)
    changed_BTE = logits_BTE.clone()
    changed_BTE[:, 10:] = -changed_BTE[:, 10:]
    before, after = (route(each, moe, drops=True) for each in (logits_BTE, changed_BTE))
    assert before.kept_BTk is not None
    assert after.kept_BTk is not None
    assert torch.equal(before.kept_BTk[:, :10], after.kept_BTk[:, :10])
    assert not torch.equal(before.kept_BTk, after.kept_BTk)


def test_balance_loss_is_one_for_an_even_load_and_the_number_of_experts_for_one_expert() -> None:
    even = torch.eye(4).repeat(2, 3, 1) * 30
    moe = MoEConfig(num_experts=4, top_k=1)
    counts = expert_counts(route(even, moe, drops=False).experts_BTk, 4)
    torch.testing.assert_close(balance_loss(even, counts), torch.tensor(1.0))
    one = torch.tensor([30.0, 0.0, 0.0, 0.0]).expand(2, 12, 4)
    counts = expert_counts(route(one, moe, drops=False).experts_BTk, 4)
    torch.testing.assert_close(balance_loss(one, counts), torch.tensor(4.0))


def test_losses_are_means_over_sequences_whatever_the_micro_batch() -> None:
    logits_BTE = random_logits(rows=4)
    counts_BE = expert_counts(logits_BTE.topk(2).indices, 6)
    pairs = zip(logits_BTE.split(1), counts_BE.split(1), strict=True)
    alone = torch.stack([torch.stack([balance_loss(*pair), z_loss(pair[0])]) for pair in pairs])
    together = torch.stack([balance_loss(logits_BTE, counts_BE), z_loss(logits_BTE)])
    torch.testing.assert_close(alone.mean(0), together)


def test_router_losses_reach_the_gradient_scaled_and_are_recorded_once() -> None:
    """The gradient is that of scale x (loss + weighted auxiliary losses), formed by hand."""
    moe = MoEConfig(num_experts=6, top_k=2, balance_loss=0.3, z_loss=0.2)
    logits_BTE = random_logits().requires_grad_()
    record = RouterRecord()
    record.scale = 8.0
    routing = with_auxiliary_losses(
        route(logits_BTE, moe, drops=True), logits_BTE, moe, record, CONTEXT
    )
    target_BTk = torch.randn(routing.weights_BTk.shape, generator=torch.Generator().manual_seed(1))
    assert record.total is None
    (8.0 * (routing.weights_BTk * target_BTk).sum()).backward()

    again_BTE = logits_BTE.detach().clone().requires_grad_()
    probabilities_BTE = functional.softmax(again_BTE, -1)
    chosen = probabilities_BTE.topk(2)
    weights_BTk = chosen.values / chosen.values.sum(-1, keepdim=True)
    share_BE = functional.one_hot(chosen.indices, 6).float().mean((1, 2))
    balance = 6 * (share_BE * probabilities_BTE.mean(1)).sum(1).mean()
    z = torch.logsumexp(again_BTE, -1).pow(2).mean()
    (8.0 * ((weights_BTk * target_BTk).sum() + 0.3 * balance + 0.2 * z)).backward()
    torch.testing.assert_close(logits_BTE.grad, again_BTE.grad)

    total = record.take()
    assert total is not None
    expected = [*functional.one_hot(chosen.indices, 6).sum((0, 1, 2)).tolist(), 0]
    assert total.tolist() == pytest.approx([*expected, balance.item(), z.item(), 1], rel=1e-6)
    assert record.total is None
