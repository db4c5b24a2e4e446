"""Slow ranks are named, by seconds of their own alone."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from roots.device import Device
from roots.log import get_logger
from roots.parallel.mesh import Mesh
from roots.parallel.topology import Topology
from roots.training.anomalies.event_log import EventLog
from roots.training.anomalies.pace import PaceCheck, medians_of_peers
from tests.helpers.distributed import run_distributed

CPU = Device("cpu", 0)
STEPS = (10, 20, 30, 40)


class Clock:
    """Goes on by `tick` seconds whenever it is asked."""

    def __init__(self) -> None:
        self.now, self.tick = 0.0, 1.0

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


def measure(rank: int, world_size: int, path: Path) -> list[str]:
    """Forward passes of rank 1 last twice as long as those of the others, in the last step not."""
    lines: list[str] = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = get_logger("training.anomalies.pace")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    events = EventLog(path if rank == 0 else None)
    module, clock = nn.Linear(2, 2), Clock()
    mesh = Mesh.create(Topology(data=world_size))
    check = PaceCheck(module, mesh, CPU, events, 1.3, clock)
    for step in STEPS:
        clock.tick = 2.0 if rank == 1 and step < STEPS[-1] else 1.0
        # Whatever is computed between the measured steps does not count.
        module(torch.ones(1, 2))
        check.begin(0.5)
        for _ in range(2):
            module(torch.ones(1, 2))
        check.end(step)
    return lines


def test_a_slow_rank_is_named_once_and_again_when_it_is_fast(tmp_path: Path) -> None:
    path = tmp_path / "rank_times.jsonl"
    lines, *others = run_distributed(measure, 3, path)
    first, last = lines
    assert not any("slow" in line for each in others for line in each)
    assert first.startswith("rank 1 on ")
    # After the second measured step, and not in the third again.
    assert first.endswith("is slow: 4.500 s of its own in step 20, its peers 2.500 s")
    assert last.startswith("rank 1 on ")
    assert last.endswith("is as fast as its peers again")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert records[0] == {"step": 10, "seconds": [2.5, 4.5, 2.5]}
    assert [record["step"] for record in records] == list(STEPS)


def test_ranks_are_compared_with_those_of_their_stage() -> None:
    assert medians_of_peers([1.0, 1.2, 5.0, 5.5], [0, 0, 1, 1]) == [1.0, 1.0, 5.0, 5.0]
    # Alone in their stages, with all.
    assert medians_of_peers([1.0, 2.0], [0, 1]) == [1.0, 1.0]


def test_milliseconds_are_no_reason(caplog: pytest.LogCaptureFixture) -> None:
    module = nn.Linear(2, 2)
    check = PaceCheck(module, Mesh.single(), CPU, EventLog(None), 1.3)
    with caplog.at_level(logging.INFO):
        for step in range(3):
            check.begin(0.0)
            module(torch.ones(1, 2))
            check.end(step)
    assert not caplog.records
