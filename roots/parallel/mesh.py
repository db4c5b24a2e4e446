"""Process groups as values: a frozen Mesh of axes, handed to constructors and never global."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch.distributed as dist

from roots.errors import RootsError, problem
from roots.parallel.topology import AXES, ORDER, Topology


@dataclass(frozen=True)
class Axis:
    """The processes that this one works with along one axis of the mesh.

    `rank` is this process's index in `ranks` (global ranks, ascending). `group` is None exactly
    when `size` is 1: nothing is to be communicated then, and every collective is the identity.
    """

    name: str
    size: int
    rank: int
    ranks: tuple[int, ...]
    group: dist.ProcessGroup | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Mesh:
    """This process's place in the layout and its axis in each direction.

    `model` is tensor x pipeline (the ranks that share one copy of the model), `replica` is
    context x data (the ranks that hold the same part of it), `world` is all ranks. `expert` and
    `expert_data` cut the replica axis: the ranks among which the experts are spread out, and those
    that hold the same experts.
    """

    topology: Topology
    rank: int
    tensor: Axis
    context: Axis
    data: Axis
    pipeline: Axis
    replica: Axis
    model: Axis
    expert: Axis
    expert_data: Axis
    world: Axis

    @staticmethod
    def single() -> Mesh:
        """The mesh of one process; needs no torch.distributed and makes collectives identities."""
        axes = {name: _lone_axis(name, 0) for name in _AXIS_NAMES}
        return Mesh(topology=Topology(), rank=0, **axes)

    @staticmethod
    def create(topology: Topology) -> Mesh:
        """Build this process's groups; every rank calls it, after torch.distributed is initialised.

        Communication: one group creation per axis larger than 1, synchronised among its members
        only, so the cost does not grow with the number of groups. Every rank creates its groups in
        the same order of axes, which keeps creation free of deadlock.
        Raises RootsError if the topology does not have exactly the world's number of ranks.
        """
        world_size = dist.get_world_size()
        if topology.world_size != world_size:
            sizes = " x ".join(f"{name} {topology.axis_size(name)}" for name in ORDER)
            raise RootsError(
                problem(
                    "parallel",
                    None,
                    f"{sizes} needs {topology.world_size} processes, the run has {world_size}",
                    f"start {topology.world_size} processes or change the degrees",
                )
            )
        rank = dist.get_rank()
        groups = {tuple(range(world_size)): dist.group.WORLD}
        axes = {name: _create_axis(name, topology, rank, groups) for name in _AXIS_NAMES}
        return Mesh(topology=topology, rank=rank, **axes)


_AXIS_NAMES = (*AXES, "world")


def _lone_axis(name: str, rank: int) -> Axis:
    return Axis(name=name, size=1, rank=0, ranks=(rank,))


def _create_axis(
    name: str,
    topology: Topology,
    rank: int,
    groups: dict[tuple[int, ...], dist.ProcessGroup | None],
) -> Axis:
    """The axis of `rank`; groups of equal ranks are made once and kept in `groups`."""
    if name == "world":
        ranks = tuple(range(topology.world_size))
    else:
        ranks = tuple(topology.group_of(name, rank))
    if len(ranks) == 1:
        return _lone_axis(name, rank)
    if ranks not in groups:
        groups[ranks] = dist.new_group(list(ranks), use_local_synchronization=True)
    return Axis(name, size=len(ranks), rank=ranks.index(rank), ranks=ranks, group=groups[ranks])
