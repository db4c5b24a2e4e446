"""Every token of a sample is on one context rank, and of its stream on one tensor rank."""

from __future__ import annotations

import pytest
import torch

from roots.parallel.mesh import Axis, Mesh
from roots.parallel.placement import Placement

CPU = torch.device("cpu")


def fake(name: str, size: int, rank: int) -> Axis:
    return Axis(name, size, rank, tuple(range(size)))


def places(tensor: int, context: int, *, sequence: bool, zigzag: bool) -> list[Placement]:
    return [
        Placement(fake("tensor", tensor, t), fake("context", context, c), sequence, zigzag)
        for c in range(context)
        for t in range(tensor)
    ]


@pytest.mark.parametrize("zigzag", [False, True])
@pytest.mark.parametrize(("tensor", "context"), [(2, 1), (1, 2), (2, 2), (3, 4)])
def test_streams_partition_a_sample(tensor: int, context: int, zigzag: bool) -> None:
    found = []
    for place in places(tensor, context, sequence=True, zigzag=zigzag):
        positions_T = place.positions(48, CPU)
        assert torch.equal(positions_T, positions_T.sort().values)
        x = torch.randn(2, 48)
        assert torch.equal(place.take(x, 1), x[:, positions_T])
        stream_Z = place.stream_positions(48, CPU)
        share = len(positions_T) // tensor
        start = place.tensor.rank * share
        assert torch.equal(stream_Z, positions_T[start : start + share])
        found.append(stream_Z)
    assert torch.equal(torch.cat(found).sort().values, torch.arange(48))


def test_zigzag_gives_every_rank_the_same_causal_work() -> None:
    for context in (2, 4):
        pairs = places(1, context, sequence=False, zigzag=True)
        work = {int((place.positions(48, CPU) + 1).sum()) for place in pairs}
        assert len(work) == 1


def test_a_lone_rank_has_everything() -> None:
    place = Placement.on(Mesh.single(), sequence=True, zigzag=True)
    assert place.whole
    x = torch.randn(1, 5)
    assert place.take(x, 1) is x
    assert torch.equal(place.stream_positions(5, CPU), torch.arange(5))
