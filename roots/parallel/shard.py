"""Where a local parameter lies in its global tensor: the record that every parameter carries.

From it follow initial values, checkpoints, export, and the flags by which DeepSpeed counts the
gradient of a sharded parameter on every rank and that of a replicated one only once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from roots.errors import RootsError, problem
from roots.parallel.mesh import Axis
from roots.parallel.process import all_gather_object, all_gather_tensors

_SHARD = "roots_shard"
# The two names under which DeepSpeed looks for a sharded parameter (runtime/utils.py).
_SHARDED_FLAGS = ("model_parallel", "tensor_model_parallel")


@dataclass(frozen=True)
class Shard:
    """This rank's part of a global parameter.

    name:      global name, the same on every layout
    shape:     global shape
    dim:       the sharded dimension, None if replicated
    intervals: global [start, stop) ranges along `dim` that this rank holds, in local order;
               () if replicated
    tied_to:   name of the parameter whose values this one shares, if any
    expert:    it belongs to one expert, which other ranks of the expert axis do not hold at all
    """

    name: str
    shape: tuple[int, ...]
    dim: int | None
    intervals: tuple[tuple[int, int], ...]
    tied_to: str | None = None
    expert: bool = False

    @property
    def local_shape(self) -> tuple[int, ...]:
        """Shape of the local tensor."""
        if self.dim is None:
            return self.shape
        held = sum(stop - start for start, stop in self.intervals)
        return (*self.shape[: self.dim], held, *self.shape[self.dim + 1 :])


def replicated(name: str, shape: Sequence[int], *, tied_to: str | None = None) -> Shard:
    """The record of a parameter that every rank holds whole."""
    return Shard(name, tuple(shape), None, (), tied_to)


def even(
    name: str, shape: Sequence[int], dim: int, axis: Axis, *, tied_to: str | None = None
) -> Shard:
    """The record of a parameter cut along `dim` into `axis.size` equal contiguous parts.

    Raises RootsError if the size along `dim` is not divisible.
    """
    return chunked(name, shape, dim, axis, [shape[dim]], tied_to=tied_to)


def chunked(
    name: str,
    shape: Sequence[int],
    dim: int,
    axis: Axis,
    chunks: Sequence[int],
    *,
    tied_to: str | None = None,
) -> Shard:
    """The record of a fused parameter, such as [Q; K; V] or [gate; up].

    `chunks` are the sizes of the parts along `dim`; each part is cut evenly over the axis, so that
    a rank holds its share of every part. Raises RootsError for a part that is not divisible.
    """
    assert sum(chunks) == shape[dim], f"{name}: chunks {list(chunks)} do not add up to {shape[dim]}"
    uneven = [size for size in chunks if size % axis.size]
    if uneven:
        sizes = ", ".join(str(size) for size in uneven)
        raise RootsError(
            problem(
                name,
                tuple(shape),
                f"dimension {dim} has parts of {sizes} to cut over {axis.size} {axis.name} ranks",
                f"make them divisible by {axis.size} or change parallel.{axis.name}",
            )
        )
    intervals = []
    start = 0
    for size in chunks:
        share = size // axis.size
        intervals.append((start + axis.rank * share, start + (axis.rank + 1) * share))
        start += size
    return Shard(name, tuple(shape), dim, tuple(intervals), tied_to)


def attach(parameter: torch.nn.Parameter, shard: Shard, sharded_over: Axis) -> None:
    """Give `parameter` its record, and DeepSpeed's flags if it really is cut over that axis."""
    assert tuple(parameter.shape) == shard.local_shape, (
        f"{shard.name}: local shape {tuple(parameter.shape)} is not {shard.local_shape}"
    )
    setattr(parameter, _SHARD, shard)
    if shard.dim is not None and sharded_over.size > 1:
        for flag in _SHARDED_FLAGS:
            setattr(parameter, flag, True)


def attach_expert(
    parameter: torch.nn.Parameter, shard: Shard, tensor_axis: Axis, expert_axis: Axis
) -> None:
    """`attach` for a parameter of one expert, with DeepSpeed's flags if experts are spread out.

    Where every rank holds all experts, a parameter of one is like any other.
    """
    if expert_axis.size == 1:
        attach(parameter, shard, tensor_axis)
        return
    attach(parameter, replace(shard, expert=True), tensor_axis)
    # deepspeed/moe/utils.py, is_moe_param.
    parameter.allreduce = False  # type: ignore[attr-defined]
    parameter.group_name = expert_group_name(expert_axis.size)  # type: ignore[attr-defined]


def is_spread_expert(parameter: torch.nn.Parameter) -> bool:
    """Whether other ranks of the expert axis do not hold `parameter`."""
    shard = getattr(parameter, _SHARD, None)
    return isinstance(shard, Shard) and shard.expert


def expert_group_name(degree: int) -> str:
    """The key under which DeepSpeed keeps the process groups of that expert-parallel degree."""
    return f"ep_size_{degree}"


def shard_of(parameter: torch.nn.Parameter, name: str = "a parameter") -> Shard:
    """The record of `parameter`; `name` is used in the error for one without.

    Raises RootsError naming the parameter if none was attached.
    """
    shard = getattr(parameter, _SHARD, None)
    if not isinstance(shard, Shard):
        raise RootsError(
            problem(
                name,
                tuple(parameter.shape),
                "every parameter carries a Shard record",
                "create it through roots.parallel, or call roots.parallel.shard.attach on it",
            )
        )
    return shard


def slice_full(full: Tensor, shard: Shard) -> Tensor:
    """This rank's part, a new tensor of `shard.local_shape`, of the whole tensor `full`."""
    assert tuple(full.shape) == shard.shape, f"{shard.name}: {tuple(full.shape)} vs {shard.shape}"
    if shard.dim is None:
        return full.clone()
    dim = shard.dim
    return torch.cat([full.narrow(dim, a, b - a) for a, b in shard.intervals], dim=dim)


def gather_full(local: Tensor, shard: Shard, axis: Axis) -> Tensor:
    """The whole tensor, of `shard.shape`, on every rank of `axis`; `local` itself if replicated.

    Communication: all-gather of the parts and of their intervals; outside autograd.
    """
    if shard.dim is None or axis.size == 1:
        return local
    dim = shard.dim
    held = all_gather_object(axis, shard.intervals)
    parts = all_gather_tensors(axis, local)
    full = local.new_empty(shard.shape)
    for intervals, part in zip(held, parts, strict=True):
        position = 0
        for start, stop in intervals:
            full.narrow(dim, start, stop - start).copy_(part.narrow(dim, position, stop - start))
            position += stop - start
    return full
