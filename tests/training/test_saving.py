"""Saving beside training: what was there at its start, whole or not at all, and what it takes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from roots.checkpoint import folders, manifest, retention
from roots.checkpoint.boxes import Piece
from roots.checkpoint.manifest import Layout
from roots.checkpoint.staging import Staging
from roots.checkpoint.store import TensorStore
from roots.checkpoint.tensor_file import Entry
from roots.config import RunConfig
from roots.device import Device
from roots.errors import ExitCode, RootsError
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
    pieces_stay = True

    def __init__(self) -> None:
        self.data = torch.arange(600.0)

    def written_pieces(self) -> list[Piece]:
        return [Piece("matrix", replicated("matrix", (20, 30)), 0, self.data)]

    def written_groups(self) -> list[list[Piece]]:
        return [self.written_pieces()]

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


POINT = ResumePoint(4, 32, evaluation=2.5)


class Pair:
    """An engine that holds a weight and a moment, good until the next is asked for or longer."""

    device = Device("cpu", 0)

    def __init__(self, pieces_stay: bool = True) -> None:
        self.pieces_stay = pieces_stay
        self.before_update: Callable[[], None] = lambda: None
        self.weight = torch.arange(6.0).view(2, 3)
        self.moment = torch.ones(6)

    def written_pieces(self) -> Iterator[Piece]:
        shard = replicated("weight", (2, 3))
        yield Piece("weight", shard, 0, self.weight.view(-1))
        yield Piece("exp_avg/weight", shard, 0, self.moment)

    def written_groups(self) -> list[list[Piece]]:
        return [list(self.written_pieces())]

    def state(self) -> EngineState:
        return EngineState(4)


def config_of(folder: Path, **checkpoint: Any) -> RunConfig:
    return small_config(folder / "data", folder, checkpoint=checkpoint)


def saver_in(config: RunConfig) -> Saver:
    root = config.run_directory / folders.CHECKPOINTS_FOLDER
    root.mkdir(parents=True, exist_ok=True)
    saver = Saver(config, Mesh.single(), root, LAYOUT)
    saver.tokenizer_files = {"tokenizer.json": b"{}"}
    return saver


def names(config: RunConfig) -> list[str]:
    return sorted(path.name for path in (config.run_directory / "checkpoints").iterdir())


@pytest.mark.parametrize("asynchronous", [True, False])
def test_checkpoint_is_whole_and_of_the_time_of_its_start(
    asynchronous: bool, tmp_path: Path
) -> None:
    """Weights, optimizer, config, tokenizer and numbers; training goes on meanwhile."""
    config, engine = config_of(tmp_path, asynchronous=asynchronous), Pair()
    saver = saver_in(config)
    saver.start(engine, POINT)  # type: ignore[arg-type]
    assert saver.in_flight
    engine.before_update()
    engine.weight.fill_(-1), engine.moment.fill_(-1)
    saver.wait()
    assert not saver.busy
    saved = saver.conclude()
    assert (saved.step, saver.in_flight, names(config)) == (4, False, ["latest", "step_00000004"])
    found = manifest.read_manifest(saved.path)
    assert (found.step, found.consumed_samples, found.evaluation) == (4, 32, 2.5)
    assert (found.state, found.layout) == (EngineState(4).to_json(), LAYOUT)
    assert manifest.all_damage(saved.path, found, found.files) == []
    assert found.files.keys() == {
        "config.yaml",
        "optimizer/rank_00000.safetensors",
        "tokenizer/tokenizer.json",
        "weights/rank_00000.safetensors",
    }
    assert folders.read_config(saved.path) == config
    parts = [*found.weights, *found.optimizer]
    store = TensorStore(saved.path, [saved.path / each for each in parts])
    shard = replicated("weight", (2, 3))
    assert store.read(shard).tolist() == [[0, 1, 2], [3, 4, 5]]
    moment = torch.empty(6)
    store.fill([Piece("exp_avg/weight", shard, 0, moment)])
    assert moment.tolist() == [1.0] * 6
    assert saved.num_bytes == sum(
        found.files[each].bytes for each in found.weights + found.optimizer
    )


@pytest.mark.parametrize("stays", [True, False])
def test_an_update_waits_for_the_copy_that_goes_on_beside_a_step(
    stays: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait counts as a stall; what does not stay is copied before the step begins."""
    gate, copy, waits = threading.Event(), Staging.copy, list[str]()

    def late(staging: Staging, pieces: Iterable[Piece]) -> list[Entry]:
        assert gate.wait(60)
        return copy(staging, pieces)

    @contextmanager
    def waiting() -> Iterator[None]:
        waits.append("begins")
        threading.Timer(0.2, gate.set).start()
        yield
        waits.append("ends")

    monkeypatch.setattr(Staging, "copy", late)
    saver, engine = saver_in(config_of(tmp_path)), Pair(stays)
    saver.waiting = waiting
    if not stays:
        gate.set()
    saver.start(engine, POINT)  # type: ignore[arg-type]
    engine.before_update()
    assert waits == (["begins", "ends"] if stays else [])
    engine.moment.fill_(-1)
    engine.before_update()
    saver.wait()
    saved = saver.conclude()
    assert saved.stall_seconds >= (0.2 if stays else 0.0)
    store = TensorStore(saved.path, list(saved.path.rglob("*.safetensors")))
    moment = torch.empty(6)
    store.fill([Piece("exp_avg/weight", replicated("weight", (2, 3)), 0, moment)])
    assert moment.tolist() == [1.0] * 6
    engine.before_update()
    assert len(waits) <= 2


def test_a_failed_copy_lets_the_update_go_on_and_is_raised_in_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Staging, "copy", fail_with(ZeroDivisionError("mine")))
    saver, engine = saver_in(config_of(tmp_path)), Pair()
    saver.start(engine, POINT)  # type: ignore[arg-type]
    engine.before_update()
    saver.wait()
    with pytest.raises(ZeroDivisionError, match="mine"):
        saver.conclude()


def test_nothing_is_copied_where_nothing_goes_on_beside(tmp_path: Path) -> None:
    """The last save of a run needs no second copy of the state in memory."""
    saver, engine = saver_in(config_of(tmp_path)), Pair()
    saver.start(engine, POINT, beside=False)  # type: ignore[arg-type]
    assert saver._staging is None
    assert not saver.busy
    found = manifest.read_manifest(saver.conclude().path)
    assert (found.step, len(found.weights), len(found.optimizer)) == (4, 1, 1)


def test_saver_is_busy_until_its_part_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, gate = config_of(tmp_path), threading.Event()
    monkeypatch.setattr("roots.training.saving.write_part", lambda *_: gate.wait(60))
    saver = saver_in(config)
    saver.start(Pair(), POINT)  # type: ignore[arg-type]
    assert saver.busy
    assert names(config) == ["step_00000004.partial"]
    gate.set()
    saver.wait()
    assert not saver.busy
    assert saver.in_flight


def fail_with(error: BaseException) -> Any:
    def write_part(*_: object) -> None:
        raise error

    return write_part


def test_full_disk_is_told_in_the_end_and_keeps_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path)
    saver = saver_in(config)
    saver.start(Pair(), ResumePoint(2, 16))  # type: ignore[arg-type]
    saver.wait()
    taken = manifest.read_manifest(saver.conclude().path).total_bytes
    full = OSError(28, "No space left on device")
    monkeypatch.setattr("roots.training.saving.write_part", fail_with(full))
    monkeypatch.setattr("roots.checkpoint.folders.free_bytes", lambda path: 1234)
    saver.start(Pair(), POINT)  # type: ignore[arg-type]
    saver.wait()
    with pytest.raises(RootsError) as caught:
        saver.conclude()
    assert caught.value.exit_code is ExitCode.NOT_SAVED
    root = config.run_directory / "checkpoints"
    assert caught.value.lines == (
        f"checkpoint={str(root / 'step_00000004')!r}: could not be written (No space left on "
        f"device); step_00000002 has {taken:,} bytes, and 1,234 bytes are free; free some disk "
        "space; the checkpoints before it are untouched",
    )
    assert names(config) == ["latest", "step_00000002"]
    assert (root / "latest").read_text() == "step_00000002"
    monkeypatch.undo()
    saver.start(Pair(), POINT)  # type: ignore[arg-type]
    saver.wait()
    assert saver.conclude().path == root / "step_00000004"


@pytest.mark.parametrize("call", ["write_atomically", "manifest.write_manifest"])
def test_disk_that_is_full_for_a_small_file_is_told_alike(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path)
    saver = saver_in(config)
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(f"roots.training.saving.{call}", fail_with(full))
    monkeypatch.setattr("roots.checkpoint.folders.free_bytes", lambda path: 1234)

    def save() -> None:
        saver.start(Pair(), POINT, beside=False)  # type: ignore[arg-type]
        saver.conclude()

    with pytest.raises(RootsError) as caught:
        save()
    assert caught.value.exit_code is ExitCode.NOT_SAVED
    root = config.run_directory / "checkpoints"
    assert caught.value.lines == (
        f"checkpoint={str(root / 'step_00000004')!r}: could not be written (No space left on "
        "device); 1,234 bytes are free; free some disk space; the checkpoints before it are "
        "untouched",
    )
    assert names(config) == []


@pytest.mark.parametrize("asynchronous", [True, False])
def test_nothing_that_is_not_finite_is_saved(asynchronous: bool, tmp_path: Path) -> None:
    config, engine = config_of(tmp_path, asynchronous=asynchronous), Pair()
    engine.moment[3] = torch.inf
    saver = saver_in(config)
    saver.start(engine, POINT)  # type: ignore[arg-type]
    saver.wait()
    with pytest.raises(RootsError, match="exp_avg/weight") as caught:
        saver.conclude()
    assert caught.value.exit_code is ExitCode.DIVERGED
    assert names(config) == []


def test_bug_in_the_thread_is_raised_in_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roots.training.saving.write_part", fail_with(ZeroDivisionError("mine")))
    saver = saver_in(config_of(tmp_path))
    saver.start(Pair(), POINT)  # type: ignore[arg-type]
    saver.wait()
    with pytest.raises(ZeroDivisionError, match="mine"):
        saver.conclude()


def test_without_memory_for_a_copy_training_waits_and_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("roots.training.saving.available_host_bytes", lambda: 100)
    caplog.set_level(logging.WARNING)
    saver, engine = saver_in(config_of(tmp_path)), Pair()
    for step in (2, 4):
        saver.start(engine, ResumePoint(step, 8 * step))  # type: ignore[arg-type]
        assert not saver.busy
        engine.weight.fill_(-1)
        saver.conclude()
    assert caplog.messages == [
        "checkpoints are written while training waits: a copy in host memory takes 128 more bytes "
        "on this rank, and 100 are free for each rank of this machine"
    ]


def test_old_checkpoints_go_beside_training_and_before_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Removing gigabytes takes seconds; the folder is tidied by the next save, so not meanwhile."""
    go_on, removed = threading.Event(), []
    remove = retention.apply

    def slowly(root: Path, keep: retention.Keep, held: Collection[Path] = ()) -> list[Path]:
        go_on.wait(60)
        found = remove(root, keep, held)
        removed.extend(path.name for path in found)
        return found

    monkeypatch.setattr(retention, "apply", slowly)
    engine: Any = Holding()
    saver, _ = saver_of(tmp_path, keep_last=1)
    for step in (1, 2):
        saver.start(engine, ResumePoint(step, 8 * step))
        saver.wait()
        assert saver.conclude().path.is_dir()
        assert not removed
        if step == 1:
            go_on.set()
            saver.settle()
            go_on.clear()
    go_on.set()
    saver.settle()
    assert removed == ["step_00000001"]
