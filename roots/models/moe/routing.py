"""Which experts a token goes to, and what its router is taught besides.

Everything here is a function of one sequence: capacity and auxiliary losses count the tokens of a
sequence and never those of a micro-batch or of a rank. Hence every layout gives equal numbers.

Legend: B micro-batch, T tokens, E experts, k experts of a token.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from roots.config.moe import MoEConfig
from roots.parallel.mesh import Axis
from roots.parallel.process import all_reduce_sum


class Routing(NamedTuple):
    """experts_BTk: the chosen experts, best first; weights_BTk: theirs in the sum, float32;
    kept_BTk: False where an expert was full, None if nothing is dropped."""

    experts_BTk: Tensor
    weights_BTk: Tensor
    kept_BTk: Tensor | None


def route(logits_BTE: Tensor, moe: MoEConfig, *, drops: bool) -> Routing:
    """The `top_k` largest of the softmax over all experts, from float32 logits.

    Scaled to sum to 1 (moe.normalises) they are the softmax over the chosen logits, as in Mixtral.
    With `drops` those beyond moe.capacity_factor get weight 0.
    """
    probabilities_BTE = functional.softmax(logits_BTE, dim=-1)
    weights_BTk, experts_BTk = probabilities_BTE.topk(moe.top_k, dim=-1)
    if moe.normalises:
        weights_BTk = weights_BTk / weights_BTk.sum(dim=-1, keepdim=True)
    if moe.capacity_factor is None or not drops:
        return Routing(experts_BTk, weights_BTk, None)
    length = experts_BTk.shape[1]
    capacity = math.ceil(moe.capacity_factor * moe.top_k * length / moe.num_experts)
    kept_BTk = within_capacity(experts_BTk, moe.num_experts, capacity)
    return Routing(experts_BTk, weights_BTk * kept_BTk, kept_BTk)


def within_capacity(experts_BTk: Tensor, num_experts: int, capacity: int) -> Tensor:
    """True for the first `capacity` choices of every expert in a sequence, by position.

    First come, first served: whether a token is dropped depends on none after it, so nothing leaks
    from the future as it does where all first choices precede all second ones (GShard).
    """
    flat_BN = experts_BTk.flatten(1)
    chosen_BNE = functional.one_hot(flat_BN, num_experts)
    place_BN = chosen_BNE.cumsum(dim=1).gather(2, flat_BN.unsqueeze(2)).squeeze(2)
    return (place_BN <= capacity).view_as(experts_BTk)


def expert_counts(experts_BTk: Tensor, num_experts: int) -> Tensor:
    """How many choices fell on every expert, counts_BE."""
    flat_BN = experts_BTk.flatten(1)
    zeros_BE = flat_BN.new_zeros((flat_BN.shape[0], num_experts))
    return zeros_BE.scatter_add(1, flat_BN, torch.ones_like(flat_BN))


def balance_loss(logits_BTE: Tensor, counts_BE: Tensor) -> Tensor:
    """E sum_e f_e P_e of every sequence, averaged: 1 if all experts are used alike, at most E.

    f_e is the share of the sequence's choices that fell on e (no gradient), P_e the mean of its
    softmax (Fedus, Zoph, Shazeer 2021, equation 4, with top-k choices as in Megatron-core).
    """
    mean_BE = functional.softmax(logits_BTE, dim=-1).mean(dim=1)
    share_BE = counts_BE / counts_BE.sum(dim=1, keepdim=True)
    return counts_BE.shape[1] * (share_BE * mean_BE).sum(dim=1).mean()


def z_loss(logits_BTE: Tensor) -> Tensor:
    """Mean of logsumexp(logits)^2 (Zoph et al. 2022, equation 5)."""
    return logits_BTE.logsumexp(dim=-1).square().mean()


class RouterRecord:
    """What one layer's router did in the micro-batches of a step, and how its losses are scaled.

    scale: the factor on the loss in the backward pass (loss scale / accumulation), which the
           engine sets before a step, because auxiliary losses reach the gradient in this layer and
           not through the loss
    total: sum over micro-batches of [counts of every expert, dropped choices, balance loss,
           z loss, 1], float64 [E + 4]; None before the first
    """

    def __init__(self) -> None:
        self.scale = 1.0
        self.total: Tensor | None = None

    def add(self, entry: Tensor) -> None:
        """Count one micro-batch more."""
        self.total = entry if self.total is None else self.total + entry

    def take(self) -> Tensor | None:
        """The total so far, and start again."""
        total, self.total = self.total, None
        return total


def with_auxiliary_losses(
    routing: Routing, logits_BTE: Tensor, moe: MoEConfig, record: RouterRecord, context: Axis
) -> Routing:
    """`routing`, whose backward pass also adds the gradient of the auxiliary losses to the logits.

    So they are part of the objective wherever the layer is, on any pipeline stage, without passing
    through the stages after it; `record` hears of the micro-batch then, which is once even where
    the forward pass runs again.

    Where the ranks of `context` share a sequence, a rank's P_e is of its own tokens: the mean of
    their losses, like that of their gradients, is that of the whole sequence. Communication: an
    all-reduce of the counts over that axis.
    """
    counts_BE = expert_counts(routing.experts_BTk, moe.num_experts)
    balance = balance_loss(logits_BTE, all_reduce_sum(context, counts_BE))
    z = z_loss(logits_BTE)
    dropped = torch.zeros((), device=balance.device)
    if routing.kept_BTk is not None:
        dropped = routing.kept_BTk.logical_not().sum()
    numbers = torch.stack([each.detach().double() for each in (dropped, balance, z)])
    entry = torch.cat([counts_BE.sum(dim=0).double(), numbers, numbers.new_ones(1)])
    loss = moe.balance_loss * balance + moe.z_loss * z
    weights_BTk = _WithLoss.apply(routing.weights_BTk, loss, entry, record)
    return routing._replace(weights_BTk=weights_BTk)


class _WithLoss(Function):
    """The identity on weights, with a backward pass that starts one of `loss` too."""

    @staticmethod
    def forward(
        ctx: Any, weights_BTk: Tensor, loss: Tensor, entry: Tensor, record: RouterRecord
    ) -> Tensor:
        ctx.entry, ctx.record = entry, record
        return weights_BTk.view_as(weights_BTk)

    @staticmethod
    def backward(ctx: Any, d_weights_BTk: Tensor) -> tuple[Tensor, Tensor, None, None]:
        ctx.record.add(ctx.entry)
        return d_weights_BTk, d_weights_BTk.new_tensor(ctx.record.scale), None, None
