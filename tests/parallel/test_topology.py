"""Rank arithmetic, also for worlds that no test could start."""

from __future__ import annotations

import pytest

from roots.errors import RootsError
from roots.parallel.topology import AXES, Coordinate, Topology

# tensor, data, pipeline, context
SIZES = [(1, 1, 1, 1), (2, 1, 1, 1), (1, 3, 2, 1), (2, 3, 4, 2), (1, 2, 1, 4), (8, 80, 8, 2)]


@pytest.mark.parametrize("tensor, data, pipeline, context", SIZES)
def test_rank_and_coordinate_are_inverse(
    tensor: int, data: int, pipeline: int, context: int
) -> None:
    topology = Topology(tensor, data, pipeline, context)
    coordinates = [topology.coordinate(rank) for rank in range(topology.world_size)]
    assert [topology.rank_of(*coordinate) for coordinate in coordinates] == list(
        range(tensor * data * pipeline * context)
    )
    assert len(set(coordinates)) == topology.world_size


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("tensor, data, pipeline, context", SIZES)
def test_groups_of_an_axis_partition_the_world(
    tensor: int, data: int, pipeline: int, context: int, axis: str
) -> None:
    topology = Topology(tensor, data, pipeline, context)
    groups = topology.groups(axis)
    assert sorted(rank for group in groups for rank in group) == list(range(topology.world_size))
    assert {len(group) for group in groups} == {topology.axis_size(axis)}
    assert groups == sorted(groups)
    for group in groups:
        assert group == sorted(group)
        assert topology.group_of(axis, group[-1]) == group


def test_tensor_ranks_are_neighbours_and_pipeline_ranks_are_farthest_apart() -> None:
    topology = Topology(tensor=8, data=160, pipeline=8)
    assert topology.world_size == 10_240
    assert topology.coordinate(10_239) == Coordinate(tensor=7, data=159, pipeline=7)
    assert topology.group_of("tensor", 9_000) == list(range(9_000, 9_008))
    assert topology.group_of("data", 3) == list(range(3, 1_280, 8))
    assert topology.group_of("pipeline", 3) == list(range(3, 10_240, 1_280))
    assert topology.group_of("replica", 3) == topology.group_of("data", 3)
    assert topology.group_of("model", 0)[:9] == [0, 1, 2, 3, 4, 5, 6, 7, 1_280]


def test_context_ranks_stand_between_tensor_and_data() -> None:
    topology = Topology(tensor=2, context=4, data=3, pipeline=2)
    assert topology.group_of("context", 9) == [9, 11, 13, 15]
    assert topology.group_of("data", 9) == [1, 9, 17]
    assert topology.group_of("replica", 9) == list(range(1, 24, 2))
    assert topology.group_of("model", 9) == [8, 9, 32, 33]


@pytest.mark.parametrize(
    "topology",
    [
        Topology(tensor=2, data=8, expert=4),
        Topology(tensor=2, data=2, context=4, pipeline=2, expert=4),
        Topology(data=6, pipeline=3, expert=6),
        Topology(data=4),
    ],
    ids=str,
)
def test_experts_are_spread_as_deepspeed_spreads_them(topology: Topology) -> None:
    """Over neighbours of the replica axis; those of equal place in them hold the same ones."""
    from deepspeed.utils.groups import _get_expert_parallel_ranks

    spread, same = _get_expert_parallel_ranks(
        topology.world_size, topology.tensor, topology.expert, topology.pipeline
    )
    for axis, theirs in (("expert", spread), ("expert_data", same)):
        groups = topology.groups(axis)
        assert groups == sorted(map(list, theirs))
        assert {len(group) for group in groups} == {topology.axis_size(axis)}
        for group in groups:
            assert all(topology.group_of(axis, rank) == group for rank in group)


def test_expert_axis_is_made_of_whole_parts_of_the_replicas() -> None:
    with pytest.raises(RootsError) as error:
        Topology(tensor=2, data=3, context=2, expert=4)
    assert str(error.value) == (
        "parallel.expert=4: must divide the 6 ranks of context x data; set it to 1, 2, 3 or 6"
    )


def test_order_is_that_of_deepspeed() -> None:
    from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

    ours = Topology(tensor=2, context=2, data=3, pipeline=4)
    theirs = PipeModelDataParallelTopology(num_pp=4, num_mp=2, num_dp=6)
    assert theirs.world_size() == ours.world_size
    for rank in range(ours.world_size):
        place = theirs.get_coord(rank)
        data, context = divmod(place.data, 2)
        assert ours.coordinate(rank) == Coordinate(place.model, data, place.pipe, context)
    for axis, name in (("tensor", "model"), ("replica", "data"), ("pipeline", "pipe")):
        assert sorted(ours.groups(axis)) == sorted(theirs.get_axis_comm_lists(name))


def test_a_degree_below_one_is_refused() -> None:
    with pytest.raises(RootsError) as error:
        Topology(tensor=2, pipeline=0)
    assert str(error.value) == ("parallel.pipeline=0: a degree is at least 1; set it to 1 or more")
