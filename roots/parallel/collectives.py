"""Collectives with gradients, as conjugate pairs: each one's backward is its partner's forward.

    copy_to     forward identity      backward all-reduce
    reduce_from forward all-reduce    backward identity
    gather_from forward all-gather    backward split
    split_to    forward split         backward all-gather
    gather_to   forward all-gather    backward reduce-scatter
    scatter_sum forward reduce-scatter backward all-gather
    exchange    forward all-to-all    backward all-to-all

All are the identity on an axis of size 1, and none writes into its input. Gloo (of torch 2.13) has
them all, in every dtype, in the forms used here; two CPU ranks sum by an exchange, which is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


def gather_to(x: Tensor, axis: Axis, dim: int) -> Tensor:
    """Concatenate the ranks' slices along `dim`, for use by each rank in its own way.

    Communication: forward all-gather; backward reduce-scatter of the ranks' gradients.
    """
    return x if axis.group is None else _GatherTo.apply(x, axis, dim)


def scatter_sum(x: Tensor, axis: Axis, dim: int) -> Tensor:
    """This rank's slice along `dim` of the sum of the ranks' partial `x`.

    Communication: forward reduce-scatter; backward all-gather. Raises RootsError if the size along
    `dim` is not divisible.
    """
    return x if axis.group is None else _ScatterSum.apply(x, axis, dim)


def sum_parts(x: Tensor, axis: Axis, sequence_dim: int | None) -> Tensor:
    """The sum of the ranks' partial `x`, or with sequence parallelism this rank's slice of it.

    Communication: that of reduce_from, or with a `sequence_dim` of scatter_sum.
    """
    if sequence_dim is None:
        return reduce_from(x, axis)
    return scatter_sum(x, axis, sequence_dim)


def exchange(x: Tensor, axis: Axis, split: int, join: int) -> Tensor:
    """Cut `x` along `split`, part i for rank i, and concatenate what comes along `join`.

    What was sharded along `join` becomes sharded along `split`. Its conjugate is itself with the
    dims swapped. Communication: forward and backward an all-to-all. Raises RootsError if the size
    along `split` is not divisible.
    """
    return x if axis.group is None else _Exchange.apply(x, axis, split, join)


@dataclass(frozen=True)
class Pending:
    """A collective under way; `wait` returns its result, and is called once.

    inputs: what is being sent, kept from being freed until this is.
    """

    work: dist.Work
    finish: Callable[[], Tensor]
    inputs: Sequence[Tensor]

    def wait(self) -> Tensor:
        """The result, when it is there."""
        self.work.wait()
        return self.finish()


def all_gather_async(x: Tensor, axis: Axis, dim: int) -> Pending:
    """Start concatenating the ranks' slices; for axes larger than 1, outside autograd."""
    mine = x.contiguous()
    parts = [torch.empty_like(mine) for _ in range(axis.size)]
    work = dist.all_gather(parts, mine, group=axis.group, async_op=True)
    return Pending(work, lambda: torch.cat(parts, dim=dim), (mine,))


def reduce_scatter_async(x: Tensor, axis: Axis, dim: int) -> Pending:
    """Start making this rank's slice along `dim` of the sum of `x`; else as all_gather_async."""
    parts = [part.contiguous() for part in x.split(_share(x, axis, dim), dim)]
    total = torch.empty_like(parts[0])
    work = dist.reduce_scatter(total, parts, group=axis.group, async_op=True)
    return Pending(work, lambda: total, parts)


def shift_async(x: Tensor, axis: Axis) -> Pending:
    """Start passing `x` to the next rank of the ring and receiving that of the rank before.

    `x` must stay as it is until the wait. For axes larger than 1, outside autograd.
    """
    sent, received = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    following = axis.ranks[(axis.rank + 1) % axis.size]
    previous = axis.ranks[axis.rank - 1]
    works = dist.batch_isend_irecv(
        [
            dist.P2POp(dist.isend, sent, following, group=axis.group),
            dist.P2POp(dist.irecv, received, previous, group=axis.group),
        ]
    )

    def finish() -> Tensor:
        for work in works[1:]:
            work.wait()
        return received

    return Pending(works[0], finish, (sent,))


def all_reduce_async(x: Tensor, axis: Axis) -> Pending | None:
    """Start summing `x` over `axis` in place; what to wait for returns it (None at size 1).

    The exception to "never in place": for buffers that a layer has just made and owns alone.
    """
    if axis.group is None:
        return None
    if _swaps(x, axis):
        coming = shift_async(x, axis)
        return Pending(coming.work, lambda: x.add_(coming.finish()), coming.inputs)
    return Pending(dist.all_reduce(x, group=axis.group, async_op=True), lambda: x, ())


def _all_reduce(x: Tensor, axis: Axis) -> Tensor:
    if _swaps(x, axis):
        return shift_async(x, axis).wait().add_(x)
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=axis.group)
    return total


def _swaps(x: Tensor, axis: Axis) -> bool:
    """Whether two ranks sum by sending each other all of `x`, each adding what comes to its own.

    Gloo's all-reduce sends half of x, waits, and sends the other half summed: as many bytes in two
    rounds, 1.6 times as long for 3 MB. A sum of two does not depend on their order.
    """
    return axis.size == 2 and x.device.type == "cpu"


def _all_gather(x: Tensor, axis: Axis, dim: int) -> Tensor:
    mine = x.contiguous()
    parts = [torch.empty_like(mine) for _ in range(axis.size)]
    dist.all_gather(parts, mine, group=axis.group)
    return torch.cat(parts, dim=dim)


def _all_to_all(x: Tensor, axis: Axis, split: int, join: int) -> Tensor:
    sent = torch.stack(x.split(_share(x, axis, split), split))
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=axis.group)
    return torch.cat(received.unbind(), dim=join)


def _share(x: Tensor, axis: Axis, dim: int) -> int:
    """Size of one rank's slice along `dim`."""
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
    return size // axis.size


def _split(x: Tensor, axis: Axis, dim: int) -> Tensor:
    share = _share(x, axis, dim)
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


class _GatherTo(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, dim: int) -> Tensor:
        ctx.axis, ctx.dim = axis, dim
        return _all_gather(x, axis, dim)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        return reduce_scatter_async(dy, ctx.axis, ctx.dim).wait(), None, None


class _ScatterSum(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, dim: int) -> Tensor:
        ctx.axis, ctx.dim = axis, dim
        return reduce_scatter_async(x, axis, dim).wait()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        return _all_gather(dy, ctx.axis, ctx.dim), None, None


class _Exchange(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, split: int, join: int) -> Tensor:
        ctx.axis, ctx.split, ctx.join = axis, split, join
        return _all_to_all(x, axis, split, join)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        return _all_to_all(dy, ctx.axis, ctx.join, ctx.split), None, None, None
