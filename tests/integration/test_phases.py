"""A run that begins another blend, is left in the middle of it, and goes on elsewhere."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from roots.checkpoint import manifest
from roots.config import RunConfig
from roots.data.batch import Batch
from roots.log import get_logger
from roots.training.callbacks.metrics import read_metrics
from roots.training.engine.step import Engine, StepResult
from tests.helpers.distributed import run_distributed
from tests.helpers.runs import small_config, write_dataset
from tests.integration.runs import run


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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "train_step", reading)
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
