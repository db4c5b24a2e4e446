"""Column- and row-parallel linear layers (Megatron-LM, arXiv:1909.08053, section 3).

Legend: ... leading dims, I input features, O output features; a lowercase letter is this rank's
share of the dimension.

With a `sequence_dim` what enters a column-parallel and leaves a row-parallel layer is this rank's
slice along that dim (sequence parallelism, Korthikanti et al., arXiv:2205.05198): the all-reduce of
the one becomes a reduce-scatter, and the identity at the other end an all-gather.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

from roots.parallel.collectives import (
    all_gather_async,
    all_reduce_async,
    copy_to,
    gather_from,
    reduce_scatter_async,
    sum_parts,
)
from roots.parallel.mesh import Axis
from roots.parallel.shard import Shard, attach, chunked, even, replicated

LinearOutput = Tensor | tuple[Tensor, Tensor | None]


class ColumnParallelLinear(nn.Module):
    """y_o = x_I W_oI^T + b_o: each rank of `axis` computes its share of the output features.

    `chunks` gives the sizes of fused parts of the output (Q, K, V or gate, up), each cut evenly.
    With `gather_output` y is whole (parts in rank order, so only for a single chunk).
    With `skip_bias` the result is (y without bias, bias or None), for a fused bias add.
    Values are uninitialised; models/init.py fills them.

    Communication: forward none (all-gather of y with gather_output); backward all-reduce of dx,
    running while dW is computed. With sequence_dim: forward all-gather of x; backward all-gather of
    x again, which is not kept, running while dx is computed, and reduce-scatter of dx, running
    while dW is computed.
    Raises RootsError if a part is not divisible by the size of the axis.
    """

    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        name: str,
        axis: Axis,
        bias: bool,
        chunks: Sequence[int] | None = None,
        gather_output: bool = False,
        skip_bias: bool = False,
        sequence_dim: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        parts = [out_size] if chunks is None else list(chunks)
        assert not (gather_output and len(parts) > 1), f"{name}: gathered chunks would interleave"
        assert not (gather_output and skip_bias), f"{name}: a skipped bias is not gathered"
        self.axis = axis
        self.gather_output = gather_output
        self.skip_bias = skip_bias
        self.sequence_dim = sequence_dim
        weight = chunked(f"{name}.weight", (out_size, in_size), 0, axis, parts)
        self.weight = _parameter(weight, axis, device, dtype)
        self.bias: nn.Parameter | None = None
        if bias:
            record = chunked(f"{name}.bias", (out_size,), 0, axis, parts)
            self.bias = _parameter(record, axis, device, dtype)

    def forward(self, x: Tensor) -> LinearOutput:
        """x [..., I] -> y [..., o] (or [..., O] with gather_output)."""
        bias = None if self.skip_bias else self.bias
        if self.axis.group is None:
            y = functional.linear(x, self.weight, bias)
        elif self.sequence_dim is not None:
            y = _GatheringLinear.apply(x, self.weight, bias, self.axis, self.sequence_dim)
        else:
            y = _ColumnLinear.apply(x, self.weight, bias, self.axis)
        if self.skip_bias:
            return y, self.bias
        return gather_from(y, self.axis, -1) if self.gather_output else y

    def extra_repr(self) -> str:
        """Sizes, for printing the module."""
        return _describe(self.weight, self.axis)


class RowParallelLinear(nn.Module):
    """y_O = (sum over ranks of x_i W_Oi^T) + b_O: each rank holds a share of the input features.

    With `skip_bias` the result is (y without bias, bias or None), for a fused bias add; then, with
    `partial`, y is this rank's part of the sum alone, for a caller that has more to add before it
    calls `summed`. Values are uninitialised; models/init.py fills them.

    Communication: forward all-reduce of y, unless partial; backward none. With sequence_dim:
    forward reduce-scatter of y; backward all-gather of dy and all-reduce of db, because each rank
    adds b to its slice.
    Raises RootsError if in_size is not divisible by the size of the axis.
    """

    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        name: str,
        axis: Axis,
        bias: bool,
        skip_bias: bool = False,
        partial: bool = False,
        sequence_dim: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        assert skip_bias or not partial, f"{name}: a bias is added to the sum, not to its parts"
        self.axis = axis
        self.skip_bias = skip_bias
        self.partial = partial
        self.sequence_dim = sequence_dim
        weight = even(f"{name}.weight", (out_size, in_size), 1, axis)
        self.weight = _parameter(weight, axis, device, dtype)
        self.bias: nn.Parameter | None = None
        if bias:
            self.bias = _parameter(replicated(f"{name}.bias", (out_size,)), axis, device, dtype)

    def forward(self, x: Tensor) -> LinearOutput:
        """x [..., i] -> y [..., O], equal on every rank, or its slice along sequence_dim."""
        if self.axis.group is None:
            y = functional.linear(x, self.weight, None if self.skip_bias else self.bias)
            return (y, self.bias) if self.skip_bias else y
        bias: Tensor | None = self.bias
        if bias is not None and self.sequence_dim is not None:
            bias = copy_to(bias, self.axis)
        y = functional.linear(x, self.weight)
        if not self.partial:
            y = self.summed(y)
        if self.skip_bias:
            return y, bias
        return y if bias is None else y + bias

    def summed(self, y: Tensor) -> Tensor:
        """The sum over the ranks of their parts, or its slice along sequence_dim."""
        return sum_parts(y, self.axis, self.sequence_dim)

    def extra_repr(self) -> str:
        """Sizes, for printing the module."""
        return _describe(self.weight, self.axis)


def _parameter(
    shard: Shard, axis: Axis, device: torch.device | str | None, dtype: torch.dtype | None
) -> nn.Parameter:
    parameter = nn.Parameter(torch.empty(shard.local_shape, device=device, dtype=dtype))
    attach(parameter, shard, axis)
    return parameter


def _describe(weight: nn.Parameter, axis: Axis) -> str:
    out_size, in_size = weight.shape
    return f"local in={in_size}, local out={out_size}, {axis.name} axis of {axis.size}"


class _ColumnLinear(Function):
    """Linear with a replicated input: the gradient of x is summed over the axis."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_oI: Tensor, bias_o: Tensor | None, axis: Axis
    ) -> Tensor:
        ctx.save_for_backward(x, weight_oI)
        ctx.axis = axis
        return functional.linear(x, weight_oI, bias_o)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight_oI = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        dy_Mo = dy.reshape(-1, dy.shape[-1])
        dx = work = dweight_oI = dbias_o = None
        if needs_x:
            dx_MI = dy_Mo.mm(weight_oI)
            # dW needs no communication, so it hides the time of the all-reduce.
            work = all_reduce_async(dx_MI, ctx.axis)
            dx = dx_MI.view(x.shape)
        if needs_weight:
            dweight_oI = dy_Mo.t().mm(x.reshape(-1, x.shape[-1]))
        if needs_bias:
            dbias_o = dy_Mo.sum(0)
        if work is not None:
            work.wait()
        return dx, dweight_oI, dbias_o, None


class _GatheringLinear(Function):
    """Linear on the ranks' slices of x, put together along a dim that is not the last."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_oI: Tensor, bias_o: Tensor | None, axis: Axis, dim: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight_oI)
        ctx.axis, ctx.dim = axis, dim
        return functional.linear(all_gather_async(x, axis, dim).wait(), weight_oI, bias_o)

    @staticmethod
    def backward(
        ctx: Any, dy: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight_oI = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        dy_Mo = dy.reshape(-1, dy.shape[-1])
        dx = scattering = dweight_oI = dbias_o = None
        gathering = all_gather_async(x, ctx.axis, ctx.dim) if needs_weight else None
        if needs_x:
            whole_dx = dy_Mo.mm(weight_oI).view(*dy.shape[:-1], weight_oI.shape[1])
            # dW and db hide the time of the reduce-scatter.
            scattering = reduce_scatter_async(whole_dx, ctx.axis, ctx.dim)
        if gathering is not None:
            dweight_oI = dy_Mo.t().mm(gathering.wait().reshape(-1, x.shape[-1]))
        if needs_bias:
            dbias_o = dy_Mo.sum(0)
        if scattering is not None:
            dx = scattering.wait()
        return dx, dweight_oI, dbias_o, None, None
