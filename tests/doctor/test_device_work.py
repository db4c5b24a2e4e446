"""The work on a device, here a processor; what processes pass each other is measured for real."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from roots.device import Device, LaunchEnvironment
from roots.doctor import device_work
from roots.doctor.agent import free_ports
from roots.doctor.device_work import DeviceWork, matmul_rate
from roots.parallel.process import initialise, shutdown
from tests.helpers.distributed import run_distributed

CPU = Device("cpu", 0)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_work, "_SECONDS", 0.01)
    monkeypatch.setattr(device_work, "current_device", lambda number: CPU)


def test_product_has_a_rate_and_is_the_same_each_time() -> None:
    work = DeviceWork(0)
    assert work.start()["matmul"] is None
    found = work.matmul()
    assert found["kind"] == "cpu"
    assert found["matmul"] > 1e6
    assert not found["differs"]
    json.dumps(found)


def test_gpu_that_torch_does_not_see_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_work, "device_count", lambda: 5)
    with pytest.raises(RuntimeError, match="torch sees 5 GPUs"):
        DeviceWork(5, on_gpu=True)
    DeviceWork(4, on_gpu=True)


def test_product_that_differs_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right, calls = torch.mm, list[int]()

    def wrong(left: torch.Tensor, other: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        right(left, other, out=out)
        calls.append(1)
        out[3, 5] += len(calls) == 2
        return out

    monkeypatch.setattr(torch, "mm", wrong)
    assert matmul_rate(CPU)[1]


def _both(rank: int, world_size: int, ports: list[int]) -> list[dict[str, Any]]:
    shutdown()
    work = DeviceWork(0)
    work.device = CPU
    found = [
        work.pair("localhost", ports[:1], rank),
        work.reduce("127.0.0.1", ports[1], rank, world_size, 1),
    ]
    # Who has started this process takes the group apart that it has made.
    initialise(LaunchEnvironment(rank, rank, world_size, world_size, "127.0.0.1", ports[2]), CPU)
    return found


def test_two_processes_meet_twice_and_agree_on_rates() -> None:
    first, second = run_distributed(_both, 2, free_ports(3))
    assert first == second
    assert all(each["rate"] > 1e6 for each in first)


def test_who_meets_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_work, "_PATIENCE_SECONDS", 0.5)
    with pytest.raises(Exception, match="all 2 processes must meet there"):
        DeviceWork(0).pair("127.0.0.1", free_ports(1), 1)
