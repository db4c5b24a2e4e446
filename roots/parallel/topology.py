"""Rank arithmetic of a tensor x context x data x pipeline layout; pure, no processes needed.

Rank order, fastest first: tensor, context, data, pipeline, so that the ranks that talk most are
neighbours on a node. It is the order of DeepSpeed's `PipeModelDataParallelTopology` (axes pipe,
data, model), whose data axis is our replica.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import NamedTuple

from roots.errors import RootsError, problem

# The axes of which a rank is made up, fastest first.
ORDER = ("tensor", "context", "data", "pipeline")
# Axes made of several of them. replica: the ranks that hold the same part of the model, over which
# gradients are averaged and ZeRO partitions; model: the ranks that hold one copy of it together.
COMPOSITE = {"replica": ("context", "data"), "model": ("tensor", "pipeline")}
# The replica axis cut in two, fastest first: the ranks among which the experts are spread out, and
# those that hold the same experts. (Of the dense parameters all of them hold the same.)
OF_REPLICA = ("expert", "expert_data")
AXES = (*ORDER, *COMPOSITE, *OF_REPLICA)


class Coordinate(NamedTuple):
    """Place of one rank: its index along each axis of ORDER."""

    tensor: int = 0
    data: int = 0
    pipeline: int = 0
    context: int = 0


@dataclass(frozen=True)
class Topology:
    """Sizes of the axes; rank = ((pipeline * data_size + data) * context_size + context)
    * tensor_size + tensor.

    Raises RootsError for a size below one.
    """

    tensor: int = 1
    data: int = 1
    pipeline: int = 1
    context: int = 1
    expert: int = 1

    def __post_init__(self) -> None:
        for name in (*ORDER, "expert"):
            size = self.axis_size(name)
            if size < 1:
                raise RootsError(
                    problem(
                        f"parallel.{name}", size, "a degree is at least 1", "set it to 1 or more"
                    )
                )
        replicas = self.axis_size("replica")
        if replicas % self.expert:
            *fits, last = (str(each) for each in range(1, replicas + 1) if replicas % each == 0)
            rule = f"must divide the {replicas} ranks of context x data"
            fix = f"set it to {', '.join(fits)} or {last}" if fits else f"set it to {last}"
            raise RootsError(problem("parallel.expert", self.expert, rule, fix))

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return prod(self.axis_size(name) for name in ORDER)

    def axis_size(self, axis: str) -> int:
        """Number of ranks in one group of `axis`."""
        assert axis in AXES, f"axis {axis!r} is none of {AXES}"
        if axis == "expert_data":
            return self.axis_size("replica") // self.expert
        return prod(int(getattr(self, name)) for name in _parts(axis))

    def coordinate(self, rank: int) -> Coordinate:
        """Coordinate of a global rank."""
        assert 0 <= rank < self.world_size, f"rank {rank} outside a world of {self.world_size}"
        strides = self._strides()
        return Coordinate(**{name: rank // strides[name] % self.axis_size(name) for name in ORDER})

    def rank_of(self, tensor: int = 0, data: int = 0, pipeline: int = 0, context: int = 0) -> int:
        """Global rank at a coordinate."""
        place = Coordinate(tensor, data, pipeline, context)
        for name in ORDER:
            index, size = getattr(place, name), self.axis_size(name)
            assert 0 <= index < size, f"{name} index {index} of {size}"
        return sum(getattr(place, name) * stride for name, stride in self._strides().items())

    def group_of(self, axis: str, rank: int) -> list[int]:
        """Global ranks, ascending, that differ from `rank` only along `axis`."""
        if axis in OF_REPLICA:
            parts = self._of_replica(axis, self.group_of("replica", rank))
            return next(part for part in parts if rank in part)
        here, strides = self.coordinate(rank), self._strides()
        first = rank - sum(getattr(here, name) * strides[name] for name in _parts(axis))
        return [first + offset for offset in self._offsets(axis)]

    def groups(self, axis: str) -> list[list[int]]:
        """All groups of `axis`, ordered by their first rank; together they hold every rank once."""
        if axis in OF_REPLICA:
            replicas = self.groups("replica")
            return sorted(part for ranks in replicas for part in self._of_replica(axis, ranks))
        offsets = self._offsets(axis)
        others = [name for name in ORDER if name not in _parts(axis)]
        return [[first + offset for offset in offsets] for first in self._combinations(others)]

    def _of_replica(self, axis: str, ranks: list[int]) -> list[list[int]]:
        """The groups of `axis` that one replica group is made of."""
        if axis == "expert_data":
            return [ranks[index :: self.expert] for index in range(self.expert)]
        return [ranks[i : i + self.expert] for i in range(0, len(ranks), self.expert)]

    def _strides(self) -> dict[str, int]:
        """How far apart in rank two neighbours along each axis of ORDER are."""
        sizes = [self.axis_size(name) for name in ORDER]
        strides = accumulate(sizes[:-1], lambda a, b: a * b, initial=1)
        return dict(zip(ORDER, strides, strict=True))

    def _offsets(self, axis: str) -> list[int]:
        """The ranks of a group of `axis`, less its first."""
        return self._combinations([name for name in ORDER if name in _parts(axis)])

    def _combinations(self, names: list[str]) -> list[int]:
        """Ranks, ascending, with any index along `names` and index 0 along the other axes."""
        strides, ranks = self._strides(), [0]
        for name in names:
            steps = range(0, self.axis_size(name) * strides[name], strides[name])
            ranks = [step + rank for step in steps for rank in ranks]
        return ranks


def _parts(axis: str) -> tuple[str, ...]:
    """The axes of ORDER that `axis` is made of."""
    assert axis in AXES, f"axis {axis!r} is none of {AXES}"
    return COMPOSITE.get(axis, (axis,))
