"""Rank arithmetic of a tensor x data x pipeline layout; pure, no processes needed.

Rank order, fastest first: tensor, data, pipeline, so that tensor-parallel ranks are neighbours on a
node. It is the order of DeepSpeed's `PipeModelDataParallelTopology` (axes pipe, data, model).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from roots.errors import RootsError, problem

AXES = ("tensor", "data", "pipeline", "model")


class Coordinate(NamedTuple):
    """Place of one rank: its index along each of the three axes."""

    tensor: int
    data: int
    pipeline: int


@dataclass(frozen=True)
class Topology:
    """Sizes of the three axes; rank = (pipeline * data_size + data) * tensor_size + tensor.

    The axis "model" is tensor x pipeline: all ranks that together hold one copy of the model.
    Raises RootsError for a size below one.
    """

    tensor: int = 1
    data: int = 1
    pipeline: int = 1

    def __post_init__(self) -> None:
        for name in ("tensor", "data", "pipeline"):
            size = getattr(self, name)
            if size < 1:
                raise RootsError(
                    problem(
                        f"parallel.{name}", size, "a degree is at least 1", "set it to 1 or more"
                    )
                )

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.tensor * self.data * self.pipeline

    def axis_size(self, axis: str) -> int:
        """Number of ranks in one group of `axis`."""
        _check_axis(axis)
        if axis == "model":
            return self.tensor * self.pipeline
        return int(getattr(self, axis))

    def coordinate(self, rank: int) -> Coordinate:
        """Coordinate of a global rank."""
        assert 0 <= rank < self.world_size, f"rank {rank} outside a world of {self.world_size}"
        rest, tensor = divmod(rank, self.tensor)
        pipeline, data = divmod(rest, self.data)
        return Coordinate(tensor=tensor, data=data, pipeline=pipeline)

    def rank_of(self, tensor: int = 0, data: int = 0, pipeline: int = 0) -> int:
        """Global rank at a coordinate."""
        assert 0 <= tensor < self.tensor, f"tensor index {tensor} of {self.tensor}"
        assert 0 <= data < self.data, f"data index {data} of {self.data}"
        assert 0 <= pipeline < self.pipeline, f"pipeline index {pipeline} of {self.pipeline}"
        return (pipeline * self.data + data) * self.tensor + tensor

    def group_of(self, axis: str, rank: int) -> list[int]:
        """Global ranks, ascending, that differ from `rank` only along `axis`."""
        _check_axis(axis)
        here = self.coordinate(rank)
        if axis == "tensor":
            return [self.rank_of(t, here.data, here.pipeline) for t in range(self.tensor)]
        if axis == "data":
            return [self.rank_of(here.tensor, d, here.pipeline) for d in range(self.data)]
        if axis == "pipeline":
            return [self.rank_of(here.tensor, here.data, p) for p in range(self.pipeline)]
        return [
            self.rank_of(t, here.data, p) for p in range(self.pipeline) for t in range(self.tensor)
        ]

    def groups(self, axis: str) -> list[list[int]]:
        """All groups of `axis`, ordered by their first rank; together they hold every rank once."""
        _check_axis(axis)
        if axis == "tensor":
            leaders = [
                self.rank_of(0, d, p) for p in range(self.pipeline) for d in range(self.data)
            ]
        elif axis == "data":
            leaders = [
                self.rank_of(t, 0, p) for p in range(self.pipeline) for t in range(self.tensor)
            ]
        elif axis == "pipeline":
            leaders = [self.rank_of(t, d, 0) for d in range(self.data) for t in range(self.tensor)]
        else:
            leaders = [self.rank_of(0, d, 0) for d in range(self.data)]
        return [self.group_of(axis, leader) for leader in leaders]


def _check_axis(axis: str) -> None:
    assert axis in AXES, f"axis {axis!r} is none of {AXES}"
