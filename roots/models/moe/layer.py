"""Mixture of experts in place of a block's MLP.

DeepSpeed trains the experts (gradients averaged over the ranks that hold the same ones, the norm,
ZeRO's partitions: roots/training/engine/experts.py), but the layer is not its
deepspeed.moe.layer.MoE. That one drops tokens or pads every expert to the fullest, and counts
capacity and balance over whatever tokens a rank happens to hold, so that losses depend on the
layout; its gate has one choice of weights, a router loss that the caller must add up, which a
pipeline stage cannot do, and names in checkpoints that depend on the expert-parallel degree. Here
routing is a function of the sequence (roots/models/moe/routing.py), tokens are sorted rather than
padded (roots/models/moe/experts.py), and auxiliary losses enter the gradient where they arise.

Legend: B micro-batch, T tokens, H hidden, E experts, k experts of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from roots.config.model import ModelConfig
from roots.models.mlp import MLP
from roots.models.moe.experts import Experts
from roots.models.moe.routing import RouterRecord, route, with_auxiliary_losses
from roots.models.options import BuildOptions
from roots.parallel.collectives import copy_to, gather_from, gather_to, sum_parts
from roots.parallel.mesh import Axis, Mesh
from roots.parallel.shard import attach, replicated


class Router(nn.Module):
    """logits_BTE = x W^T in float32 whatever the dtype of x, whole on every tensor rank.

    Communication: none. With sequence parallelism x is this rank's part of the tokens: forward
    all-gather of the logits, backward all-reduce of dW.
    """

    def __init__(self, model: ModelConfig, *, name: str, axis: Axis, options: BuildOptions) -> None:
        super().__init__()
        self.axis, self.sequence_dim = axis, options.sequence_dim
        shape = (model.moe.num_experts, model.hidden_size)
        self.weight = nn.Parameter(torch.empty(shape, device=options.device, dtype=options.dtype))
        attach(self.weight, replicated(f"{name}.weight", shape), axis)

    def forward(self, x_BTH: Tensor) -> Tensor:
        """x_BTH -> logits_BTE of all tokens."""
        if self.sequence_dim is None:
            return functional.linear(x_BTH.float(), self.weight.float())
        weight_EH = copy_to(self.weight, self.axis)
        logits = functional.linear(x_BTH.float(), weight_EH.float())
        return gather_from(logits, self.axis, self.sequence_dim)


class SharedGate(nn.Module):
    """g_BT1 = sigmoid(x w^T): how much of the shared experts a token takes (Qwen2-MoE, Qwen 2024).

    Communication: none. Every tensor rank has the same x and, behind the sum over the ranks, the
    same gradient of g. With sequence parallelism each has a part of the tokens: backward all-reduce
    of dw.
    """

    def __init__(self, model: ModelConfig, *, name: str, axis: Axis, options: BuildOptions) -> None:
        super().__init__()
        self.apart = axis if options.sequence_parallel else None
        shape = (1, model.hidden_size)
        self.weight = nn.Parameter(torch.empty(shape, device=options.device, dtype=options.dtype))
        attach(self.weight, replicated(f"{name}.weight", shape), axis)

    def forward(self, x_BTH: Tensor) -> Tensor:
        """x_BTH -> g_BT1."""
        weight_1H = self.weight if self.apart is None else copy_to(self.weight, self.apart)
        return functional.linear(x_BTH, weight_1H).sigmoid()


class MoE(nn.Module):
    """y = sum over the token's top_k experts of weight * expert(x), plus the shared experts' y,
    times their gate if they have one.

    Communication: forward all-reduce of y over the tensor axis (two with shared experts), backward
    of dx and of the gradient of the weights; with sequence parallelism all-gather of x and
    reduce-scatter of y, backward the reverse. Over the expert axis see Experts.
    """

    def __init__(
        self,
        model: ModelConfig,
        *,
        name: str,
        mesh: Mesh,
        options: BuildOptions,
    ) -> None:
        super().__init__()
        axis = mesh.tensor
        self.moe = model.moe
        self.axis, self.sequence_dim = axis, options.sequence_dim
        self.context = mesh.context
        self.record = RouterRecord()
        self.router = Router(model, name=f"{name}.router", axis=axis, options=options)
        self.experts = Experts(
            model, name=f"{name}.experts", axes=(axis, mesh.expert), options=options
        )
        self.shared: MLP | None = None
        self.shared_gate: SharedGate | None = None
        if model.shared_ffn_size:
            # Several MLPs whose results are added are one MLP of their joint width.
            self.shared = MLP(
                model,
                name=f"{name}.shared",
                axis=axis,
                options=options,
                width=model.shared_ffn_size,
            )
        if self.shared is not None and model.moe.shared_expert_gate:
            self.shared_gate = SharedGate(
                model, name=f"{name}.shared_gate", axis=axis, options=options
            )

    def forward(self, x_BTH: Tensor) -> tuple[Tensor, Tensor | None]:
        """x_BTH -> y_BTH and the bias [H] that is still to be added to it, as MLP."""
        logits_BTE = self.router(x_BTH)
        routing = route(logits_BTE, self.moe, drops=self.training)
        if self.training and torch.is_grad_enabled():
            routing = with_auxiliary_losses(
                routing, logits_BTE, self.moe, self.record, self.context
            )
        all_BTH = self._whole(x_BTH)
        y_NH = self.experts(
            all_BTH.flatten(0, 1),
            routing.experts_BTk.flatten(0, 1),
            copy_to(routing.weights_BTk, self.axis).flatten(0, 1),
            None if routing.kept_BTk is None else routing.kept_BTk.flatten(0, 1),
        )
        y_BTH = sum_parts(y_NH.view_as(all_BTH), self.axis, self.sequence_dim)
        if self.shared is None:
            return y_BTH, None
        shared_BTH, bias_H = self.shared(x_BTH)
        if self.shared_gate is None:
            return y_BTH + shared_BTH, bias_H
        # The bias is a part of what is gated.
        shared_BTH = shared_BTH if bias_H is None else shared_BTH + bias_H
        return torch.addcmul(y_BTH, self.shared_gate(x_BTH), shared_BTH), None

    def _whole(self, x_BTH: Tensor) -> Tensor:
        """All tokens, of whose gradient every tensor rank gets a part, as it has one of experts."""
        if self.sequence_dim is None:
            return copy_to(x_BTH, self.axis)
        return gather_to(x_BTH, self.axis, self.sequence_dim)
