"""Joining and leaving a run, and communication outside autograd."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from roots.device import Device, LaunchEnvironment
from roots.errors import RootsError
from roots.parallel import process
from roots.parallel.mesh import Mesh
from roots.parallel.topology import Topology
from tests.helpers.distributed import run_distributed

CPU = Device("cpu", 0)


def _environment(rank: int, world_size: int, port: int) -> LaunchEnvironment:
    return LaunchEnvironment(rank, rank, world_size, world_size, "127.0.0.1", port)


def test_at_size_one_everything_is_the_identity() -> None:
    axis = Mesh.single().world
    value = torch.randn(3)
    process.barrier(axis)
    assert process.all_reduce_sum(axis, value) is value
    assert process.all_reduce_max(axis, value) is value
    assert process.all_reduce_mean(axis, value) is value
    assert process.all_gather_tensors(axis, value)[0] is value
    assert process.broadcast_object(axis, "x") == "x"
    assert process.all_gather_object(axis, "x") == ["x"]


def _exchange(rank: int, world_size: int) -> dict[str, object]:
    # Tensor pairs (0, 1) and (2, 3): index 1 of the second is global rank 3.
    axis = Mesh.create(Topology(tensor=2, data=2)).tensor
    value = torch.tensor([float(rank), 1.0])
    process.barrier(axis)
    found = {
        "sum": process.all_reduce_sum(axis, value).tolist(),
        "max": process.all_reduce_max(axis, value).tolist(),
        "mean": process.all_reduce_mean(axis, value).tolist(),
        "tensors": [part.tolist() for part in process.all_gather_tensors(axis, value)],
        "broadcast": process.broadcast_object(axis, {"from": rank}, source=1),
        "objects": process.all_gather_object(axis, f"rank {rank}"),
    }
    assert value.tolist() == [rank, 1.0]
    return found


@pytest.mark.distributed
def test_values_travel_within_their_group() -> None:
    found = run_distributed(_exchange, 4)
    assert found[0] == found[1]
    assert found[2] == found[3]
    assert found[3] == {
        "sum": [5.0, 2.0],
        "max": [3.0, 1.0],
        "mean": [2.5, 1.0],
        "tensors": [[2.0, 1.0], [3.0, 1.0]],
        "broadcast": {"from": 3},
        "objects": ["rank 2", "rank 3"],
    }


def _join_by_ourselves(rank: int, world_size: int, port: int) -> tuple[float, bool]:
    dist.destroy_process_group()
    process.initialise(_environment(rank, world_size, port), CPU, timeout_seconds=60)
    process.initialise(_environment(rank, world_size, port), CPU, timeout_seconds=60)
    total = torch.tensor(float(rank + 1))
    dist.all_reduce(total)
    process.shutdown()
    ended = not dist.is_initialized()
    process.shutdown()
    process.initialise(_environment(0, 1, port), CPU)
    return float(total), ended and dist.get_world_size() == 1


@pytest.mark.distributed
def test_processes_meet_at_the_master_and_a_lone_one_needs_no_port() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert run_distributed(_join_by_ourselves, 2, port) == [(3.0, True), (3.0, True)]


def _meet_nobody(rank: int, world_size: int, port: int) -> str:
    dist.destroy_process_group()
    with pytest.raises(RootsError) as error:
        process.initialise(_environment(1, 2, port), CPU, timeout_seconds=1)
    process.initialise(_environment(0, 1, port), CPU)
    return str(error.value)


@pytest.mark.distributed
def test_a_missing_master_is_named() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        (message,) = run_distributed(_meet_nobody, 1, silent.getsockname()[1])
    assert message.startswith(
        f"MASTER_ADDR:MASTER_PORT='{address}': all 2 processes must meet there ("
    )
    assert message.endswith(
        "; check the address, that the port is free, and that every node was started"
    )
    assert "\n" not in message


@pytest.mark.parametrize("local_world_size", [1, 2])
def test_port_of_another_program_is_named(
    local_world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        place = LaunchEnvironment(0, 0, 2, local_world_size, "127.0.0.1", port)
        with pytest.raises(RootsError) as caught:
            process.initialise(place, CPU, timeout_seconds=5)
    rule = f"another program on host {socket.gethostname()} has this port, where all 2 processes"
    assert caught.value.lines == (
        f"MASTER_PORT={port}: {rule} were to meet; end it, or set MASTER_PORT to a free one",
    )


def _listening(rank: int, world_size: int) -> set[str]:
    """The addresses, as in /proc/net/tcp, at which this process listens."""
    dist.barrier()
    links = [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text("ascii").splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in links:
                found.add(fields[1].split(":")[0])
    return found


@pytest.mark.distributed
def test_ranks_of_one_machine_listen_on_its_loopback_alone() -> None:
    found = run_distributed(_listening, 2)
    assert found == [{"0100007F"}] * 2


def test_rank_waits_for_the_first_to_listen() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert not process.await_listener("127.0.0.1", port, 0.02)
        late = threading.Timer(0.05, taken.listen)
        late.start()
        assert process.await_listener("127.0.0.1", port, 60.0)
        late.join()
