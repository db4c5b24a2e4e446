"""Collectives with gradients, as conjugate pairs: each one's backward is its partner's forward.

    copy_to     forward identity      backward all-reduce
    reduce_from forward all-reduce    backward identity
    gather_from forward all-gather    backward split
    split_to    forward split         backward all-gather

All are the identity on an axis of size 1, and none writes into its input.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from roots.errors import RootsError, problem
from roots.parallel.mesh import Axis


def copy_to(x: Tensor, axis: Axis) -> Tensor:
    """Enter a region where each rank of `axis` uses a replicated `x` in its own way.

    Communication: backward sums the ranks' gradients of x by all-reduce.
    """
    return x if axis.group is None else _CopyTo.apply(x, axis)


def reduce_from(x: Tensor, axis: Axis) -> Tensor:
    """Leave such a region: the sum of the ranks' partial `x`, equal on all of them.

    Communication: forward all-reduce.
    """
    return x if axis.group is None else _ReduceFrom.apply(x, axis)


def gather_from(x: Tensor, axis: Axis, dim: int) -> Tensor:
    """Concatenate the ranks' equally sized slices along `dim`; the result is replicated.

    Communication: forward all-gather; backward keeps this rank's slice of the gradient.
    """
    return x if axis.group is None else _GatherFrom.apply(x, axis, dim)


def split_to(x: Tensor, axis: Axis, dim: int) -> Tensor:
    """Keep this rank's slice along `dim` of a replicated `x`.

    Communication: backward all-gather. Raises RootsError if the size along `dim` is not divisible.
    """
    return x if axis.group is None else _SplitTo.apply(x, axis, dim)


def all_reduce_async(x: Tensor, axis: Axis) -> dist.Work | None:
    """Start summing `x` over `axis` in place and return the work to wait for (None at size 1).

    The exception to "never in place": for buffers that a layer has just made and owns alone.
    """
    if axis.group is None:
        return None
    return dist.all_reduce(x, group=axis.group, async_op=True)


def _all_reduce(x: Tensor, axis: Axis) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=axis.group)
    return total


def _all_gather(x: Tensor, axis: Axis, dim: int) -> Tensor:
    mine = x.contiguous()
    parts = [torch.empty_like(mine) for _ in range(axis.size)]
    dist.all_gather(parts, mine, group=axis.group)
    return torch.cat(parts, dim=dim)


def _split(x: Tensor, axis: Axis, dim: int) -> Tensor:
    size = x.shape[dim]
    if size % axis.size:
        raise RootsError(
            problem(
                f"a tensor of shape {tuple(x.shape)}",
                None,
                f"dimension {dim} is split over {axis.size} ranks of the {axis.name} axis",
                f"make {size} divisible by {axis.size}",
            )
        )
    share = size // axis.size
    return x.narrow(dim, axis.rank * share, share).clone(memory_format=torch.contiguous_format)


class _CopyTo(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor, None]:
        return _all_reduce(dx, ctx.axis), None


class _ReduceFrom(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        return _all_reduce(x, axis)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return dy, None


class _GatherFrom(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, dim: int) -> Tensor:
        ctx.axis, ctx.dim = axis, dim
        return _all_gather(x, axis, dim)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        return _split(dy, ctx.axis, ctx.dim), None, None


class _SplitTo(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, dim: int) -> Tensor:
        ctx.axis, ctx.dim = axis, dim
        return _split(x, axis, dim)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        return _all_gather(dy, ctx.axis, ctx.dim), None, None
