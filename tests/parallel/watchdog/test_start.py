"""Who is watched: ranks that have others, unless the timeout is 0."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist

from roots.config.training import WatchdogConfig
from roots.device import Device, LaunchEnvironment
from roots.parallel.watchdog import start
from roots.parallel.watchdog.record import Marks
from roots.parallel.watchdog.start import join


@pytest.mark.parametrize(("ranks", "seconds"), [(1, None), (2, 0.0)])
def test_nobody_watches_a_lone_rank_or_without_a_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, seconds: float | None
) -> None:
    environment = LaunchEnvironment(0, 0, ranks, ranks, "127.0.0.1", 0)
    before = dist.all_reduce
    section = WatchdogConfig(timeout_seconds=seconds)
    joined: list[LaunchEnvironment] = []
    monkeypatch.setattr(start, "initialise", lambda place, device: joined.append(place))
    with join(section, tmp_path, environment, Device("cpu", 0)) as marks:
        assert isinstance(marks, Marks)
        assert dist.all_reduce is before
    assert joined == [environment]
    assert list(tmp_path.iterdir()) == []
