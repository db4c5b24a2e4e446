"""The experts of one layer that live on this rank, and the way of the tokens to them and back.

Legend: N tokens, k experts of a token, H hidden; M = N k rows sent (fewer if some are dropped),
R rows received; E experts, e those of this rank; f this tensor rank's share of the inner width,
z = 2 f for a gated activation. Rows are ordered by expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function

from roots.config.model import ModelConfig
from roots.models.mlp import Activation
from roots.models.options import BuildOptions
from roots.parallel.all_to_all import exchange_counts, exchange_rows
from roots.parallel.mesh import Axis
from roots.parallel.shard import attach_expert, chunked, even


class Experts(nn.Module):
    """y_NH = sum over the chosen experts of weight * down(act(up(x))), a partial sum over tensor.

    One matrix pair an expert, called {name}.{expert}.up and .down, so that neither checkpoints nor
    exports know of layouts: the expert axis holds different ones on every rank, the tensor axis
    cuts each as a dense MLP. All of them are parameters of this module, whose forward uses each,
    also one without tokens: ZeRO gathers and reduces them in the same order everywhere.

    Communication over the expert axis: the counts, then the rows to their experts and back (three
    all-to-alls, and two backward). The counts also go to the host, which has to know the sizes.
    """

    def __init__(
        self, model: ModelConfig, *, name: str, axes: tuple[Axis, Axis], options: BuildOptions
    ) -> None:
        super().__init__()
        tensor, self.expert_axis = axes
        self.num_local = model.moe.num_experts // self.expert_axis.size
        self.activate = Activation(model, options)
        hidden, width = model.hidden_size, model.expert_ffn_size
        chunks = [width] * (2 if model.gated else 1)
        first = self.expert_axis.rank * self.num_local
        for index in range(self.num_local):
            up = chunked(
                f"{name}.{first + index}.up.weight", (sum(chunks), hidden), 0, tensor, chunks
            )
            down = even(f"{name}.{first + index}.down.weight", (hidden, width), 1, tensor)
            for kind, shard in (("up", up), ("down", down)):
                data = torch.empty(shard.local_shape, device=options.device, dtype=options.dtype)
                parameter = nn.Parameter(data)
                attach_expert(parameter, shard, tensor, self.expert_axis)
                self.register_parameter(f"{kind}_{index}", parameter)

    def forward(
        self, x_NH: Tensor, experts_Nk: Tensor, weights_Nk: Tensor, kept_Nk: Tensor | None
    ) -> Tensor:
        """x_NH and the routing of every token (see roots.models.moe.routing) -> y_NH."""
        num_experts = self.num_local * self.expert_axis.size
        plan = plan_dispatch(experts_Nk, kept_Nk, num_experts)
        sent_Se = plan.counts_E.view(-1, self.num_local)
        received_Se = exchange_counts(sent_Se, self.expert_axis)
        sent, received = torch.stack([sent_Se, received_Se]).tolist()
        send_rows, receive_rows = [sum(each) for each in sent], [sum(each) for each in received]
        order_M = plan.order_M[: sum(send_rows)]
        rows_MH = _Dispatch.apply(x_NH, order_M, plan.slot_Nk, kept_Nk)
        rows_RH = exchange_rows(rows_MH, send_rows, receive_rows, self.expert_axis)
        rows_RH = self._own_experts(rows_RH, received_Se, received)
        rows_MH = exchange_rows(rows_RH, receive_rows, send_rows, self.expert_axis)
        y_NH: Tensor = _Combine.apply(rows_MH, weights_Nk, order_M, plan.slot_Nk)
        return y_NH

    def _own_experts(
        self, rows_RH: Tensor, received_Se: Tensor, received: list[list[int]]
    ) -> Tensor:
        """Apply the experts to rows ordered by sender, then expert; the result is ordered alike."""
        counts = [sum(column) for column in zip(*received, strict=True)]
        if len(received) == 1 or self.num_local == 1:
            return self._grouped(rows_RH, counts)
        local_e = torch.arange(self.num_local, device=rows_RH.device)
        expert_R = local_e.repeat(len(received)).repeat_interleave(
            received_Se.flatten(), output_size=len(rows_RH)
        )
        order_R = expert_R.argsort(stable=True)
        inverse_R = torch.empty_like(order_R)
        inverse_R[order_R] = torch.arange(len(order_R), device=order_R.device)
        grouped_RH = self._grouped(_Permute.apply(rows_RH, order_R, inverse_R), counts)
        back_RH: Tensor = _Permute.apply(grouped_RH, inverse_R, order_R)
        return back_RH

    def _grouped(self, rows_RH: Tensor, counts: list[int]) -> Tensor:
        """The experts' MLP of rows ordered by expert, `counts` for each."""
        ups, downs = (
            [getattr(self, f"{kind}_{index}") for index in range(self.num_local)]
            for kind in ("up", "down")
        )
        z_Rz = grouped_linear(rows_RH, ups, counts)
        return grouped_linear(self.activate(z_Rz, None), downs, counts)


class Dispatch(NamedTuple):
    """Where every choice of an expert goes.

    order_M:  the choices (token * k + place) sorted by expert, dropped ones last
    slot_Nk:  where each choice is in that order, some valid row for dropped ones too
    counts_E: rows of each expert
    """

    order_M: Tensor
    slot_Nk: Tensor
    counts_E: Tensor


def plan_dispatch(experts_Nk: Tensor, kept_Nk: Tensor | None, num_experts: int) -> Dispatch:
    """Sort the choices by expert, in the order of tokens within each."""
    key = experts_Nk if kept_Nk is None else experts_Nk.where(kept_Nk, num_experts)
    order_M = key.flatten().argsort(stable=True)
    slot = torch.empty_like(order_M)
    slot[order_M] = torch.arange(len(order_M), device=order_M.device)
    counts_E = torch.zeros(num_experts + 1, dtype=torch.int64, device=key.device)
    counts_E = counts_E.scatter_add_(0, key.flatten(), torch.ones_like(key.flatten()))
    counts_E = counts_E[:num_experts]
    if kept_Nk is not None:
        slot = torch.minimum(slot, counts_E.sum() - 1)
    return Dispatch(order_M, slot.view_as(experts_Nk), counts_E)


def grouped_linear(rows_RI: Tensor, weights: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """y_RO with W_j [O, I] applied to the j-th block of `counts[j]` consecutive rows."""
    y_RO: Tensor = _GroupedLinear.apply(rows_RI, list(counts), *weights)
    return y_RO


class _GroupedLinear(Function):
    """One matrix product a block; every weight gets a gradient, zeros if its block is empty."""

    @staticmethod
    def forward(ctx: Any, rows_RI: Tensor, counts: list[int], *weights: Tensor) -> Tensor:
        ctx.save_for_backward(rows_RI, *weights)
        ctx.counts = counts
        y_RO = rows_RI.new_empty((len(rows_RI), weights[0].shape[0]))
        blocks = zip(rows_RI.split(counts), y_RO.split(counts), weights, strict=True)
        for rows, y, weight_OI in blocks:
            if len(rows):
                torch.mm(rows, weight_OI.t(), out=y)
        return y_RO

    @staticmethod
    def backward(ctx: Any, dy_RO: Tensor) -> tuple[Tensor | None, ...]:
        rows_RI, *weights = ctx.saved_tensors
        d_rows_RI = torch.empty_like(rows_RI)
        parts = (each.split(ctx.counts) for each in (dy_RO.contiguous(), rows_RI, d_rows_RI))
        gradients = []
        for dy, rows, d_rows, weight_OI in zip(*parts, weights, strict=True):
            if len(dy) == 0:
                gradients.append(torch.zeros_like(weight_OI))
                continue
            torch.mm(dy, weight_OI, out=d_rows)
            gradients.append(dy.t().mm(rows))
        return d_rows_RI, None, *gradients


class _Dispatch(Function):
    """rows_MH = x_NH[token]; the gradient sums a token's rows in the order of its choices."""

    @staticmethod
    def forward(
        ctx: Any, x_NH: Tensor, order_M: Tensor, slot_Nk: Tensor, kept_Nk: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(slot_Nk, kept_Nk)
        return x_NH.index_select(0, order_M // slot_Nk.shape[1])

    @staticmethod
    def backward(ctx: Any, d_rows_MH: Tensor) -> tuple[Tensor, None, None, None]:
        slot_Nk, kept_Nk = ctx.saved_tensors
        total_NH = None
        for choice in range(slot_Nk.shape[1]):
            part_NH = d_rows_MH.index_select(0, slot_Nk[:, choice]).float()
            if kept_Nk is not None:
                part_NH = part_NH * kept_Nk[:, choice, None]
            total_NH = part_NH if total_NH is None else total_NH.add_(part_NH)
        assert total_NH is not None
        return total_NH.to(d_rows_MH.dtype), None, None, None


class _Combine(Function):
    """y_NH = sum over choices of weight * row, in float32."""

    @staticmethod
    def forward(
        ctx: Any, rows_MH: Tensor, weights_Nk: Tensor, order_M: Tensor, slot_Nk: Tensor
    ) -> Tensor:
        ctx.save_for_backward(rows_MH, weights_Nk, order_M, slot_Nk)
        y_NH = torch.zeros((len(slot_Nk), rows_MH.shape[1]), device=rows_MH.device)
        for choice in range(slot_Nk.shape[1]):
            part_NH = rows_MH.index_select(0, slot_Nk[:, choice]).float()
            y_NH.addcmul_(part_NH, weights_Nk[:, choice, None])
        return y_NH.to(rows_MH.dtype)

    @staticmethod
    def backward(ctx: Any, dy_NH: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows_MH, weights_Nk, order_M, slot_Nk = ctx.saved_tensors
        num_choices = slot_Nk.shape[1]
        scale_M1 = weights_Nk.flatten().index_select(0, order_M).unsqueeze(1)
        d_rows_MH = dy_NH.index_select(0, order_M // num_choices).float().mul_(scale_M1)
        d_weights_Nk = torch.stack(
            [
                (rows_MH.index_select(0, slot_Nk[:, choice]).float() * dy_NH).sum(dim=1)
                for choice in range(num_choices)
            ],
            dim=1,
        )
        return d_rows_MH.to(rows_MH.dtype), d_weights_Nk, None, None


class _Permute(Function):
    """rows[order], whose gradient is gathered by the inverse instead of being scattered."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, d_rows: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return d_rows.index_select(0, inverse), None, None
