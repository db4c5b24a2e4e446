"""What is counted of torch.distributed: every way in which ROOTS and DeepSpeed call it."""

from __future__ import annotations

from typing import Any

import deepspeed.comm as deepspeed_comm
import pytest
import torch
import torch.distributed as dist

from roots.device import current_device
from roots.parallel.collectives import all_reduce_async, gather_from, reduce_from
from roots.parallel.mesh import Mesh
from roots.parallel.process import all_gather_object, barrier
from roots.parallel.topology import Topology
from roots.parallel.watchdog.record import Call
from roots.parallel.watchdog.recorder import recorder_of_process
from roots.training.engine.accelerator import join_process_group, prepare_accelerator
from tests.helpers.distributed import run_distributed


def _count(rank: int, world_size: int) -> list[Any]:
    prepare_accelerator(current_device())
    mesh = Mesh.create(Topology(tensor=2, data=2))
    recorder = recorder_of_process()
    assert recorder_of_process() is recorder
    recorder.restart()
    assert recorder.last() is None
    found: list[Any] = []

    def note() -> None:
        found.append((recorder.last(), recorder.inside))

    assert all_gather_object(mesh.world, rank) == [0, 1, 2, 3]
    note()
    gather_from(torch.ones(2), mesh.tensor, 0)
    note()
    reduce_from(torch.ones(2), mesh.tensor)  # two CPU ranks swap
    note()
    pending = all_reduce_async(torch.ones(2), mesh.world)
    assert pending is not None
    assert torch.equal(pending.wait(), torch.full((2,), 4.0))
    note()
    join_process_group(current_device())
    recorder.restart()
    deepspeed_comm.all_reduce(torch.ones(1), group=mesh.data.group)
    note()
    into = torch.empty(4)
    deepspeed_comm.all_gather_into_tensor(into, torch.ones(1))
    note()
    if rank % 2:
        deepspeed_comm.recv(into, rank - 1)
    else:
        deepspeed_comm.send(into, rank + 1)
    note()
    found.append(recorder.messages())
    before, seconds = recorder.marks, recorder.seconds
    barrier(mesh.world)
    assert recorder.seconds > seconds > 0
    assert recorder.marks == before + 2
    found.append({(each.name, each.number, each.ranks) for each in recorder.calls()})
    with pytest.raises(TypeError):
        dist.all_reduce("no tensor", group=mesh.data.group)
    assert recorder.inside
    return found


@pytest.mark.distributed
def test_calls_of_roots_and_of_deepspeed_are_counted_by_group_and_peer() -> None:
    by_rank = run_distributed(_count, 4)
    mine = by_rank[3]
    names = [(call.name, call.number, call.ranks, inside) for call, inside in mine[:7]]
    assert names == [
        ("all_gather_object", 1, "0-3", False),
        ("all_gather", 1, "2,3", False),
        ("recv", 1, "2", False),
        ("all_reduce", 2, "0-3", False),
        ("all_reduce", 1, "1,3", False),
        ("all_gather_into_tensor", 1, "0-3", False),
        ("recv", 1, "2", False),
    ]
    assert mine[7] == ({}, {2: 1})
    assert by_rank[2][7] == ({3: 1}, {})
    assert mine[8] == {("all_reduce", 1, "1,3"), ("barrier", 2, "0-3")}
    # Members of a group know it by the same name.
    assert mine[1][0] == by_rank[2][1][0]
    assert isinstance(mine[1][0], Call)
