"""A restart on living machines goes on from what each rank has copied there, or from the shared."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from roots.checkpoint import folders
from roots.checkpoint.boxes import Piece
from roots.checkpoint.manifest import Layout, read_manifest
from roots.config import RunConfig
from roots.data.record import DataRecord
from roots.errors import ExitCode
from roots.parallel.mesh import Mesh
from roots.parallel.shard import replicated
from roots.training import loop
from roots.training.callbacks import callback
from roots.training.callbacks.metrics import StepRecord
from roots.training.engine.checkpoint_state import EngineState
from roots.training.engine.step import Engine
from roots.training.local_copies import NAME_FILE, LocalCopies
from roots.training.loop import Run
from roots.training.resume_point import ResumePoint
from tests.helpers.distributed import RankFailure, run_distributed
from tests.helpers.runs import small_config, write_dataset
from tests.integration.runs import differences, run, state_of

STEPS = 6
LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "zero1": ("fp16", {"zero_stage": 1}),
    "zero3": ("bf16", {"zero_stage": 3}),
    "pp2": ("fp32", {"pipeline": 2}),
}


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("local") / "data")


def config_of(prefix: Path, folder: Path, name: str, layout: str, every: int = 2) -> RunConfig:
    precision, parallel = LAYOUTS[layout]
    return small_config(
        prefix,
        folder,
        run={"name": name},
        parallel=parallel,
        training={"steps": STEPS, "precision": precision},
        loss_scale={"initial_power": 8, "window": 2},
        checkpoint={
            "every_steps": 0,
            "local_every_steps": every,
            "local_directory": str(folder / "memory"),
        },
    )


def dies_after(rank: int, world_size: int, config: RunConfig, step: int) -> ExitCode:
    """A run whose ranks are all killed when `step` is done, and its copy with it."""

    def on_step_end(self: object, record: StepRecord) -> None:
        if record.step > step:
            os.kill(os.getpid(), signal.SIGKILL)

    original = LocalCopies.start

    def start(self: LocalCopies, *arguments: Any) -> bool:
        made = original(self, *arguments)
        self.close(done=False)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callback.CallbackList, "on_step_end", on_step_end)
        patch.setattr(LocalCopies, "start", start)
        return run(rank, world_size, config)


def resumed(rank: int, world_size: int, config: RunConfig) -> int:
    """The step that a run goes on from; it is trained to its end."""
    started: list[int] = []

    def train_loop(assembled: Run) -> ExitCode:
        started.append(assembled.start.step)
        return loop.train_loop(assembled)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.integration.runs.train_loop", train_loop)
        assert run(rank, world_size, config) == ExitCode.DONE
    return started[0]


def copies(config: RunConfig) -> dict[str, list[str]]:
    """The steps that each rank has copied."""
    root = Path(config.checkpoint.local_directory)
    ranks = sorted(root.glob("roots-*/rank_*"))
    return {rank.name: sorted(path.name for path in rank.iterdir()) for rank in ranks}


def killed(config: RunConfig, step: int, world_size: int = 2) -> None:
    with pytest.raises(RankFailure):
        run_distributed(dies_after, world_size, config, step)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_killed_run_goes_on_from_its_copies(layout: str, prefix: Path, tmp_path: Path) -> None:
    whole = config_of(prefix, tmp_path, "whole", layout, every=0)
    parts = config_of(prefix, tmp_path, "parts", layout)
    assert set(run_distributed(run, 2, whole)) == {ExitCode.DONE}
    killed(parts, 4)
    steps = [folders.step_name(2), folders.step_name(4)]
    assert copies(parts) == {"rank_00000": steps, "rank_00001": steps}
    assert folders.finished_checkpoints(parts.run_directory / "checkpoints") == []
    assert run_distributed(resumed, 2, parts) == [4, 4]
    final = [c.run_directory / "checkpoints" / folders.step_name(STEPS) for c in (whole, parts)]
    assert differences(*(state_of(folder) for folder in final)) == []
    # A run that is done leaves nothing in memory.
    assert copies(parts) == {}


def test_copy_that_one_rank_lacks_does_not_count(prefix: Path, tmp_path: Path) -> None:
    """The one before it does, and with none the run starts anew."""
    config = config_of(prefix, tmp_path, "run", "zero1")
    killed(config, 4)
    root = next(Path(config.checkpoint.local_directory).glob("roots-*"))
    shutil.rmtree(root / "rank_00001" / folders.step_name(4))
    file = next((root / "rank_00000" / folders.step_name(2)).rglob("*.safetensors"))
    content = bytearray(file.read_bytes())
    assert run_distributed(resumed, 2, config) == [2, 2]
    shutil.rmtree(config.run_directory / "checkpoints" / folders.step_name(STEPS))
    killed(config, 4)
    content[-1] ^= 1
    file.write_bytes(content)
    shutil.rmtree(root / "rank_00000" / folders.step_name(4))
    assert run_distributed(resumed, 2, config) == [0, 0]


def test_copies_help_where_every_shared_checkpoint_is_damaged(prefix: Path, tmp_path: Path) -> None:
    config = config_of(prefix, tmp_path, "run", "zero1")
    section = config.checkpoint.model_copy(update={"every_steps": 3})
    config = config.model_copy(update={"checkpoint": section})
    killed(config, 4)
    (shared,) = folders.finished_checkpoints(config.run_directory / "checkpoints")
    (shared / "config.yaml").write_text("", encoding="utf-8")
    assert run_distributed(resumed, 2, config) == [4, 4]


def test_copies_of_another_layout_or_run_do_not_count(prefix: Path, tmp_path: Path) -> None:
    config = config_of(prefix, tmp_path, "run", "zero1")
    killed(config, 2)
    parallel = config.parallel.model_copy(update={"tensor": 2})
    other = config.model_copy(update={"parallel": parallel})
    assert run_distributed(resumed, 2, other) == [0, 0]
    killed(small := config_of(prefix, tmp_path, "second", "zero1"), 2)
    # Somebody has removed the run, and begins it anew under the same name.
    (small.run_directory / "checkpoints" / NAME_FILE).unlink()
    assert run_distributed(resumed, 2, small) == [0, 0]


class OneTensor:
    """Stands in for an engine that keeps one tensor."""

    def kept_pieces(self) -> list[Piece]:
        return [Piece("norm", replicated("norm", (4,)), 0, torch.arange(4.0))]

    def kept_groups(self) -> list[list[Piece]]:
        return [self.kept_pieces()]

    def state(self) -> EngineState:
        return EngineState(3)


def test_copy_has_what_a_checkpoint_has_and_what_is_torn_goes(prefix: Path, tmp_path: Path) -> None:
    """A start tidies what a rank was killed in; the run remembers what it has skipped."""
    config = config_of(prefix, tmp_path, "run", "zero1")
    place = (config, Mesh.single(), tmp_path / "shared", Layout(1, 1, 1, 1, "fp16"))
    copies = LocalCopies(*place)
    copies.open()
    skipped = {"skipped": [[8, 16]]}
    point = ResumePoint(4, 40, evaluation=2.5, history=skipped, data=DataRecord(1, 24))
    copies.start(cast(Engine, OneTensor()), point)
    copies.close(done=False)
    found = copies.newest(-1)
    assert found is not None
    sealed = read_manifest(found)
    assert (sealed.step, sealed.consumed_samples, sealed.evaluation) == (4, 40, 2.5)
    assert (sealed.history, sealed.state) == (point.history, EngineState(3).to_json())
    assert sealed.data == point.data
    torn = folders.partial_folder(found.parent, 6)
    torn.mkdir()
    again = LocalCopies(*place)
    again.open()
    assert again.newest(-1) == found
    assert not torn.exists()
