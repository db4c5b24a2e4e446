"""Groups as values: every rank finds itself, and its groups reach exactly the ranks they name."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from roots.errors import RootsError
from roots.parallel.mesh import Mesh
from roots.parallel.topology import AXES, Topology
from tests.helpers.distributed import run_distributed

AXIS_NAMES = (*AXES, "world")


def test_single_mesh_has_no_groups() -> None:
    mesh = Mesh.single()
    assert mesh.rank == 0
    assert mesh.topology == Topology()
    for name in AXIS_NAMES:
        axis = getattr(mesh, name)
        assert (axis.name, axis.size, axis.rank, axis.ranks) == (name, 1, 0, (0,))
        assert axis.group is None


def _sum_of_ranks(rank: int, world_size: int, topology: Topology) -> dict[str, tuple[object, ...]]:
    mesh = Mesh.create(topology)
    found = {}
    for name in AXIS_NAMES:
        axis = getattr(mesh, name)
        assert axis.ranks[axis.rank] == rank
        assert (axis.group is None) == (axis.size == 1)
        total = torch.tensor(rank)
        if axis.group is not None:
            dist.all_reduce(total, group=axis.group)
        found[name] = (axis.ranks, int(total))
    return found


@pytest.mark.distributed
@pytest.mark.parametrize(
    "topology",
    [
        Topology(4, 1, 1),
        Topology(2, 1, 2),
        Topology(1, 2, 2),
        Topology(2, context=2),
        Topology(1, 2, context=2),
        Topology(1, 4, expert=2),
    ],
    ids=str,
)
def test_groups_reach_the_ranks_of_the_topology(topology: Topology) -> None:
    for rank, found in enumerate(run_distributed(_sum_of_ranks, 4, topology)):
        for name in AXIS_NAMES:
            ranks = tuple(range(4)) if name == "world" else tuple(topology.group_of(name, rank))
            assert found[name] == (ranks, sum(ranks))


def _create_too_large(rank: int, world_size: int) -> str:
    with pytest.raises(RootsError) as error:
        Mesh.create(Topology(tensor=2, data=1, pipeline=3))
    return str(error.value)


@pytest.mark.distributed
def test_a_topology_of_another_size_is_refused() -> None:
    message = (
        "parallel: tensor 2 x context 1 x data 1 x pipeline 3 needs 6 processes, the run has 2; "
        "start 6 processes or change the degrees"
    )
    assert run_distributed(_create_too_large, 2) == [message, message]
