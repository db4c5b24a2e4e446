"""Saving beside training: the memory that it takes, and what is told of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from roots.checkpoint.boxes import Piece
from roots.checkpoint.manifest import Layout
from roots.config import RunConfig
from roots.device import Device
from roots.parallel.mesh import Mesh
from roots.parallel.shard import replicated
from roots.training import saving
from roots.training.engine.checkpoint_state import EngineState
from roots.training.resume_point import ResumePoint
from roots.training.saving import Saver
from tests.helpers.runs import small_config

LAYOUT = Layout(tensor=1, pipeline=1, data=1, zero_stage=0, precision="fp32")


class Holding:
    """An engine that holds one tensor."""

    device = Device("cpu", 0)

    def __init__(self) -> None:
        self.data = torch.arange(600.0)

    def written_pieces(self) -> list[Piece]:
        return [Piece("matrix", replicated("matrix", (20, 30)), 0, self.data)]

    def state(self) -> EngineState:
        return EngineState(1)


def saver_of(tmp_path: Path, **fields: Any) -> tuple[Saver, RunConfig]:
    config = small_config(tmp_path / "data", tmp_path, checkpoint=fields)
    root = tmp_path / "checkpoints"
    root.mkdir()
    return Saver(config, Mesh.single(), root, LAYOUT), config


@pytest.mark.parametrize("room", [True, False])
def test_memory_is_made_before_the_first_save_where_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: bool
) -> None:
    engine: Any = Holding()
    saver, _ = saver_of(tmp_path)
    with monkeypatch.context() as patched:
        if not room:
            patched.setattr(saving, "available_host_bytes", lambda: 100)
        saver.prepare(engine)
    assert saver._preparing is None or room
    saver.start(engine, ResumePoint(1, 8))
    assert saver._staging is not None
    assert saver._staging.num_bytes == 2432  # 600 floats, in whole cache lines
    saver.wait()
    assert saver.conclude().path.name == "step_00000001"


def test_nothing_is_reserved_for_saves_that_training_waits_for(tmp_path: Path) -> None:
    saver, _ = saver_of(tmp_path, asynchronous=False)
    saver.prepare(Holding())  # type: ignore[arg-type]  # all that it needs of an engine
    assert saver._staging is None


def test_a_save_tells_its_cost_and_the_share_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is measured once, with as many bytes as the part of this rank has."""
    asked: list[int] = []

    def measured(folder: Path, num_bytes: int) -> float:
        assert folder.name.startswith("step_00000001")
        asked.append(num_bytes)
        return 1e9

    monkeypatch.setattr(saving, "measure_disk", measured)
    engine: Any = Holding()
    saver, _ = saver_of(tmp_path)
    for step in (1, 2):
        saver.start(engine, ResumePoint(step, 8 * step))
        saver.wait()
        saved = saver.conclude()
        files = list(saved.path.rglob("*.safetensors"))
        record = saved.record()
        assert asked == [record.bytes] == [sum(path.stat().st_size for path in files)]
        assert record.step == step
        assert record.disk_share == pytest.approx(record.gigabytes_per_second)
        assert record.stall_seconds > 0
    assert replace(saved, disk_share=None).record().disk_share is None
