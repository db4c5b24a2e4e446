"""A run that begins another blend, is left in the middle of it, and goes on elsewhere."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from roots.checkpoint import manifest
from roots.config import RunConfig
from roots.data.batch import Batch
from roots.log import get_logger
from roots.training.callbacks.metrics import read_metrics
from roots.training.engine.step import Engine, StepResult
from roots.training.local_copies import LocalCopies
from roots.training.resume_point import ResumePoint
from tests.helpers.distributed import run_distributed
from tests.helpers.runs import small_config, write_dataset
from tests.integration.runs import run
from tests.training.anomalies.runs import Fault, bad_data


def trained(rank: int, world_size: int, config: RunConfig, *stops: int) -> dict[str, Any]:
    """What a run reads, as sample by sample of the tokens of its steps, and what it says."""
    read: list[tuple[int, ...]] = []
    lines: list[str] = []
    train_step = Engine.train_step

    def reading(self: Engine, micro_batches: Sequence[Batch], rate: float) -> StepResult:
        read.extend(tuple(row) for batch in micro_batches for row in batch.tokens_BT.tolist())
        return train_step(self, micro_batches, rate)

    logger = get_logger("training")
    logger.setLevel(logging.INFO)
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    with patch.object(Engine, "train_step", reading):
        run(rank, world_size, config, *stops)
    logger.removeHandler(handler)
    return {"samples": read, "lines": lines}


def several(rank: int, world_size: int, runs: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    return [trained(rank, world_size, *each) for each in runs]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("phases")
    return write_dataset(folder / "first"), write_dataset(folder / "second", seed=8)


def test_a_phase_reads_on_wherever_it_is_resumed(texts: tuple[Path, Path], tmp_path: Path) -> None:
    """Two steps of one blend, then four of another, whole or left and resumed in their middle."""
    first, second = texts
    blend = {"train": f"3 {first} 1 {second}", "phase": 1}

    def config(name: str, steps: int, data: dict[str, Any], **more: Any) -> RunConfig:
        sections = {"data": data, "run": {"name": name}, "training": {"steps": steps}, **more}
        sections["schedule"] = {"name": "constant", "warmup_steps": 0, "min_learning_rate": 0}
        sections["optimizer"] = {"implementation": "torch"}
        sections["anomaly"] = {"spike": "skip"}
        return small_config(first, tmp_path, **sections)

    begun, whole = config("whole", 2, {}), config("whole", 6, blend)
    alone = config("alone", 4, blend)
    ((_, phase, of_its_own, _, _),) = run_distributed(
        several,
        1,
        [(begun,), (whole,), (alone,), (config("cut", 2, {}),), (config("cut", 6, blend), 4)],
    )
    # Counted from where it began, as if nothing had been before it.
    assert phase["samples"] == of_its_own["samples"]
    assert "phase 1 of the data begins after 16 samples" in phase["lines"]
    saved = manifest.read_manifest(whole.run_directory / "checkpoints" / "step_00000006")
    assert saved.data is not None
    assert (saved.data.phase, saved.data.first_sample) == (1, 16)
    # What other data cost says nothing of a spike.
    assert len(saved.history["losses"]) == 4

    # On another layout, in smaller batches, with the data at another place.
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in first.parent.glob("first.*"):
        shutil.copy(path, moved)
    there = {**blend, "train": f"3 {moved / 'first'} 1 {second}", "num_workers": 1}
    cut = config("cut", 6, there, parallel={"tensor": 2})
    on = run_distributed(trained, 2, cut)
    assert on[0]["samples"] == on[1]["samples"] == phase["samples"][16:]
    (line,) = [line for line in on[0]["lines"] if line.startswith("data.train")]
    assert line == (
        f"data.train[0].prefix='{moved / 'first'}': was '{first}' in the checkpoint (the same data "
        "at another place)"
    )
    losses, others = (
        [each.loss for each in read_metrics(each.run_directory / "metrics.jsonl")]
        for each in (whole, cut)
    )
    assert len(losses) == len(others) == 6
    assert all(math.isclose(a, b, rel_tol=1e-5) for a, b in zip(losses, others, strict=True))


# A run that begins another phase after something has happened to it.


@dataclass(frozen=True)
class Part:
    """A start of a run, which is asked to stop after step `stop`.

    bad: steps of the data whose loss is not finite; saves: whether it saves where all see it.
    """

    config: RunConfig
    stop: int | None = None
    bad: tuple[int, ...] = ()
    saves: bool = True


def story(rank: int, world_size: int, parts: Sequence[Part | Path]) -> list[dict[str, Any]]:
    """What each start of a run reads and says; of a path, it is removed before the next."""
    found = []
    for part in parts:
        if isinstance(part, Path):
            shutil.rmtree(part)
            continue
        stops = () if part.stop is None else (part.stop,)
        with ExitStack() as stack:
            stack.enter_context(bad_data(Fault(part.bad, math.nan)))
            stack.enter_context(patch.object(LocalCopies, "start", whole_copy))
            if not part.saves:
                stack.enter_context(patch("roots.training.loop._Saves.save"))
            found.append(trained(rank, world_size, part.config, *stops))
    return found


def whole_copy(self: LocalCopies, engine: Engine, point: ResumePoint) -> None:
    """LocalCopies.start, after which the copy is there."""
    start_copy(self, engine, point)
    self.close(done=False)


start_copy = LocalCopies.start


class Place:
    """Runs in a folder, their configs before and after another phase begins."""

    def __init__(self, folder: Path, texts: tuple[Path, Path]) -> None:
        self.folder, (self.first, second) = folder, texts
        self.blend = {"train": f"3 {self.first} 1 {second}"}

    def config(self, name: str, steps: int, phase: int = 0, **sections: Any) -> RunConfig:
        data = {**self.blend, "phase": phase} if phase else {}
        return small_config(
            self.first,
            self.folder,
            run={"name": name},
            model={"num_layers": 1},
            training={"steps": steps},
            optimizer={"implementation": "torch"},
            data=data,
            **sections,
        )

    def order(self, steps: int, phase: int = 1) -> Part:
        """A run that reads the first steps of a phase and nothing else."""
        return Part(self.config(f"order-{phase}", steps, phase))


@pytest.fixture
def place(tmp_path: Path, texts: tuple[Path, Path]) -> Place:
    return Place(tmp_path, texts)


def saved_data(config: RunConfig, step: int) -> tuple[int, int, int]:
    """The phase that a checkpoint is in, where it began, and what the run has consumed."""
    found = manifest.read_manifest(config.run_directory / "checkpoints" / f"step_{step:08d}")
    assert found.data is not None
    return found.data.phase, found.data.first_sample, found.consumed_samples


def test_a_phase_begins_on_a_checkpoint_of_a_mirror(place: Place) -> None:
    """The machine is lost before the phase begins, and again in the middle of it."""
    mirror = {"checkpoint": {"mirror": f"{place.folder}-elsewhere"}}
    before, after = (place.config("lost", *each, **mirror) for each in ((2,), (6, 1)))
    folder = after.run_directory
    parts = [Part(before), folder, Part(after, stop=4), folder, Part(after), place.order(4)]
    ((_, begun, rest, order),) = run_distributed(story, 1, parts)
    assert [each["samples"] for each in (begun, rest)] == halves(order["samples"], 16)
    assert "phase 1 of the data begins after 16 samples" in begun["lines"]
    assert not [line for line in rest["lines"] if line.startswith("phase")]
    assert saved_data(after, 6) == (1, 16, 48)


def test_a_phase_begins_on_a_local_copy(place: Place) -> None:
    """One that is newer than every checkpoint, and one of the middle of the phase after that."""
    sections = {
        "checkpoint": {
            "local_every_steps": 1,
            "local_directory": str(place.folder / "memory"),
        }
    }
    before, after = (place.config("copied", *each, **sections) for each in ((6,), (6, 1)))
    parts = [
        Part(before, stop=1),
        Part(before, stop=3, saves=False),
        Part(after, stop=4, saves=False),
        Part(after),
        place.order(3),
    ]
    ((_, _, begun, rest, order),) = run_distributed(story, 1, parts)
    assert [each["samples"] for each in (begun, rest)] == halves(order["samples"], 8)
    assert "phase 1 of the data begins after 24 samples" in begun["lines"]
    assert saved_data(after, 6) == (1, 24, 48)


def test_a_rewind_stays_in_its_phase(place: Place) -> None:
    """What each phase jumps over is its own: nothing of it is left out of the next one."""
    sections = {"anomaly": {"non_finite": "rewind", "snapshot_every_steps": 2}}
    first, second, third = (
        place.config("rewound", *each, **sections) for each in ((2,), (6, 1), (8, 2))
    )
    parts = [
        Part(first, bad=(1,)),
        # Its first step is bad, then the fourth, at which the run is stopped: it goes on behind it.
        Part(second, stop=5, bad=(0, 3)),
        Part(second),
        Part(third, bad=(1,)),
        place.order(6),
        place.order(3, phase=2),
    ]
    ((_, begun, rest, after, order, next_order),) = run_distributed(story, 1, parts)
    steps = steps_of(order["samples"])
    assert steps_of(begun["samples"]) == [steps[n] for n in (0, 1, 2, 3)]
    assert steps_of(rest["samples"]) == [steps[n] for n in (4, 5)]
    steps = steps_of(next_order["samples"])
    assert steps_of(after["samples"]) == [steps[n] for n in (0, 1, 0, 2)]
    assert saved_data(second, 6) == (1, 24, 24 + 48)
    assert saved_data(third, 8) == (2, 72, 72 + 24)


def halves(samples: list[Any], at: int) -> list[list[Any]]:
    return [samples[:at], samples[at:]]


def steps_of(samples: list[Any]) -> list[list[Any]]:
    """Global batches of 8."""
    return [samples[at : at + 8] for at in range(0, len(samples), 8)]
