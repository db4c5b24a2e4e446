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
from roots.errors import ExitCode, RootsError
from roots.parallel.mesh import Mesh, Topology
from roots.parallel.process import barrier
from roots.parallel.shard import replicated
from roots.training import loop
from roots.training.callbacks import callback
from roots.training.callbacks.metrics import StepRecord
from roots.training.engine.checkpoint_state import EngineState
from roots.training.engine.step import Engine
from roots.training.local_copies import LocalCopies
from roots.training.local_courses import MARK_FILE
from roots.training.loop import Run
from roots.training.resume_point import ResumePoint
from tests.helpers.distributed import RankFailure, run_distributed
from tests.helpers.runs import small_config, write_dataset
from tests.integration.runs import differences, run, state_of

STEPS = 6
LAYOUT = Layout(1, 1, 1, 1, "fp16")
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
    (small.run_directory / "checkpoints" / MARK_FILE).unlink()
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
    place = (config, Mesh.single(), tmp_path / "shared", LAYOUT)
    copies = LocalCopies(*place)
    copies.open()
    copies.after_step()
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


def part(
    config: RunConfig, *, layout: Layout = LAYOUT, step: int | None = None, changed: bool = False
) -> LocalCopies:
    """A start of the run that has found its copies, and goes on from `step` if there is one."""
    local = LocalCopies(config, Mesh.single(), config.run_directory / "checkpoints", layout)
    local.open()
    local.newest(-1 if step is None else step)
    if step is not None:
        local.go_on_from(step, other_course=changed)
    return local


def copy(local: LocalCopies, *steps: int) -> None:
    for step in steps:
        local.after_step()
        local.start(cast(Engine, OneTensor()), ResumePoint(step, 10 * step))
        local.close(done=False)


def steps_of(config: RunConfig) -> list[str]:
    return copies(config).get("rank_00000", [])


def without_copies(config: RunConfig, **fields: Any) -> RunConfig:
    section = config.checkpoint.model_copy(update={"local_every_steps": 0, **fields})
    return config.model_copy(update={"checkpoint": section})


@pytest.mark.parametrize("elsewhere", [False, True])
def test_copies_of_a_course_that_was_given_up_are_removed(
    elsewhere: bool, prefix: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The start between did not know them: it made none, or made them in another place."""
    config = config_of(prefix, tmp_path, "run", "zero1")
    copy(part(config), 60, 65)
    place = {"local_directory": str(tmp_path / "else"), "local_every_steps": 5}
    between = part(without_copies(config, **(place if elsewhere else {})), step=50)
    assert part(config).newest(50) is not None, "it has made no step"
    between.after_step()
    again = part(config, step=50)
    assert again.newest(50) is None
    assert steps_of(config) == []
    assert caplog.messages[-1] == (
        "removed the local copies of steps 60, 65: the run has since left the course that they "
        "are of"
    )


def test_copies_of_starts_that_go_on_from_each_other_stay_good(
    prefix: Path, tmp_path: Path
) -> None:
    """One that a rank has ahead of the others does not: the course goes on from before it."""
    config = config_of(prefix, tmp_path, "run", "zero1")
    copy(part(config), 60, 65)
    part(config, step=60).after_step()
    again = part(config)
    assert steps_of(config) == [folders.step_name(60)]
    assert again.newest(50) is not None
    local = part(config, step=60)
    copy(local, 65, 70)
    local.go_back(66)
    assert steps_of(config) == [folders.step_name(65)]
    copy(local, 67)
    found = part(config).newest(50)
    assert found is not None
    assert found.name == folders.step_name(67)


def test_copies_of_another_layout_stay_until_the_start_has_its_own(
    prefix: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(prefix, tmp_path, "run", "zero1")
    copy(part(config), 60, 65)
    other = Layout(1, 2, 1, 1, "fp16")
    local = part(config, layout=other, step=50)
    assert caplog.messages == [
        f"newer local copies of steps 60, 65 are of another layout than {other.describe()}, and "
        "not used; they stay until this start has saved or copied"
    ]
    local.after_step()
    assert part(config).newest(50) is not None, "it has saved nothing"
    copy(local, 55)
    assert steps_of(config) == [folders.step_name(55)]
    assert part(config).newest(50) is None
    # Another learning rate besides: the first step decides.
    copy(part(config, step=50), 60)
    part(config, layout=other, step=50, changed=True).after_step()
    assert part(config).newest(50) is None


def told_of_damage(rank: int, world_size: int, config: RunConfig) -> tuple[list[str], list[int]]:
    """Two ranks with copies of 60 and 65, of which rank 1 loses one and has a byte flipped."""
    mesh = Mesh.create(Topology(data=world_size))
    place = (config, mesh, config.run_directory / "checkpoints", LAYOUT)
    local = LocalCopies(*place)
    local.open()
    copy(local, 60, 65)
    if rank == 1:
        root = next(Path(config.checkpoint.local_directory).glob("roots-*/rank_00001"))
        shutil.rmtree(root / folders.step_name(60))
        file = next((root / folders.step_name(65)).rglob("*.safetensors"))
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    barrier(mesh.world)
    again = LocalCopies(*place)
    again.open()
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "roots.training.local_copies._logger.warning", lambda text, *of: lines.append(text % of)
        )
        assert again.newest(50) is None
    return lines, [folders.step_of(path) for path in sorted(file_root(config, rank).iterdir())]


def file_root(config: RunConfig, rank: int) -> Path:
    return next(Path(config.checkpoint.local_directory).glob(f"roots-*/rank_{rank:05d}"))


def test_damage_of_a_newer_copy_is_told_with_its_rank(prefix: Path, tmp_path: Path) -> None:
    config = config_of(prefix, tmp_path, "run", "zero1")
    (lines, first), (silent, second) = run_distributed(told_of_damage, 2, config)
    assert lines[0] == "the newer local copy of step 60 is not used: that of rank 1 is not there"
    assert lines[1].startswith(
        "the newer local copy of step 65 is not used: that of rank 1 is damaged: checkpoint file="
    )
    assert "rank_00001/step_00000065/weights/rank_00001.safetensors" in lines[1]
    assert (len(lines), silent) == (2, [])
    assert (first, second) == ([60, 65], [65])


def test_run_that_is_done_without_the_option_removes_its_copies(
    prefix: Path, tmp_path: Path
) -> None:
    config = config_of(prefix, tmp_path, "run", "zero1")
    copy(part(config), 60, 65)
    other = tmp_path / "gone"
    part(without_copies(config, local_directory=str(other))).close(done=True)
    assert list(Path(config.checkpoint.local_directory).iterdir()) == []
    # A run that has never made any knows of none, and writes nothing.
    never = without_copies(config_of(prefix, tmp_path, "never", "zero1"))
    local = part(never)
    local.after_step()
    local.close(done=True)
    assert not never.run_directory.exists()


def test_first_save_frees_what_no_later_start_reads(prefix: Path, tmp_path: Path) -> None:
    """Copies in other places, of more ranks than there are, or of a run that makes none now."""
    config = config_of(prefix, tmp_path, "run", "zero1")
    copy(part(config), 60, 65)
    link = tmp_path / "link"
    link.symlink_to(config.checkpoint.local_directory)
    linked = {"local_directory": str(link), "local_every_steps": 5}
    local = part(without_copies(config, **linked), step=65)
    (file_root(config, 0).parent / "rank_00001" / folders.step_name(60)).mkdir(parents=True)
    copy(local, 70)
    assert copies(config) == {"rank_00000": [folders.step_name(65), folders.step_name(70)]}
    without = part(without_copies(config), step=50)
    without.after_step()
    assert copies(config) != {}, "it has saved nothing"
    without.went_on()
    assert copies(config) == {}


def test_killed_start_without_copies_is_not_undone_by_older_ones(
    prefix: Path, tmp_path: Path
) -> None:
    """It went on from the shared checkpoint with another learning rate."""
    config = config_of(prefix, tmp_path, "run", "zero1")
    section = config.checkpoint.model_copy(update={"every_steps": 3})
    config = config.model_copy(update={"checkpoint": section})
    killed(config, 4, world_size=1)
    rate = config.optimizer.model_copy(update={"learning_rate": 0.02})
    other = without_copies(config).model_copy(update={"optimizer": rate})
    killed(other, 4, world_size=1)
    assert copies(config) == {"rank_00000": [folders.step_name(2), folders.step_name(4)]}
    assert run_distributed(resumed, 1, config) == [3]


def test_folder_of_copies_that_cannot_be_made_is_refused(prefix: Path, tmp_path: Path) -> None:
    config = config_of(prefix, tmp_path, "run", "zero1")
    place = "/proc/nothere"
    section = config.checkpoint.model_copy(update={"local_directory": place})
    with pytest.raises(RootsError) as caught:
        part(config.model_copy(update={"checkpoint": section}))
    assert caught.value.exit_code == ExitCode.BAD_INPUT
    assert caught.value.lines == (
        "checkpoint.local_directory='/proc/nothere': must be a folder that every rank can write, "
        "or make, on its machine (No such file or directory); name one, or set "
        "checkpoint.local_every_steps=0 to go without local copies",
    )
