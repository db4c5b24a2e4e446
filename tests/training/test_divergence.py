"""A run that has diverged ends with exit code 4, and leaves no checkpoint that nobody can use."""

from __future__ import annotations

import dataclasses
import math
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from roots.config import RunConfig
from roots.config.batch import plan_batch
from roots.device import launch_environment
from roots.errors import ExitCode, RootsError
from roots.training.assemble import assemble, start_process
from roots.training.callbacks.callback import Callback, CallbackList
from roots.training.callbacks.metrics import StepRecord, read_metrics
from roots.training.callbacks.peak import Peak
from roots.training.divergence import SkipStreak, refuse_what_is_not_finite
from roots.training.engine.step import Engine
from roots.training.loop import train_loop
from tests.helpers.distributed import run_distributed
from tests.helpers.records import step_record
from tests.helpers.runs import small_config, write_dataset

KINDS: dict[str, dict[str, Any]] = {
    "fp32-zero0": {"precision": "fp32", "zero_stage": 0},
    "fp32-zero1": {"precision": "fp32", "zero_stage": 1},
    "bf16-zero1": {"precision": "bf16", "zero_stage": 1},
    "bf16-zero2": {"precision": "bf16", "zero_stage": 2},
    "fp16-zero1": {"precision": "fp16", "zero_stage": 1},
    "fp32-zero3": {"precision": "fp32", "zero_stage": 3},
}
CULPRIT = "embedding.positions.weight on rank 0"


def record_of(step: int, anomaly: str | None, scale: float = 1.0) -> StepRecord:
    culprit = "" if anomaly in (None, "spike") else f"tensor-{step} on rank 2"
    return step_record(
        step, skipped=anomaly is not None, overflow=culprit, loss_scale=scale, anomaly=anomaly
    )


def samples_of(step: int) -> tuple[int, int]:
    return 8 * (step - 1), 8 * step


FIX = "resume from an earlier checkpoint with a lower optimizer.learning_rate"


@pytest.mark.parametrize(
    ("kinds", "line"),
    [
        (
            ["gradient"] * 3,
            "steps 8 to 10: all have gradients that are not finite, first that of tensor-8 on rank "
            f"2, on samples 56 to 79, so training has diverged; nothing more is saved; {FIX}",
        ),
        (
            ["loss"] * 3,
            "steps 8 to 10: all have losses that are not finite, with a gradient of tensor-8 on "
            f"rank 2 first, on samples 56 to 79, so training has diverged; nothing more is saved; "
            f"{FIX}",
        ),
        (
            ["spike"] * 3,
            "steps 8 to 10: all have losses far above those before (anomaly.spike_zscore), on "
            f"samples 56 to 79, so training has diverged; nothing more is saved; {FIX}",
        ),
        (
            ["floor"] * 3,
            "steps 8 to 10: all have gradients that overflow at the lowest loss scale, "
            "loss_scale.minimum=1, first that of tensor-8 on rank 2, on samples 56 to 79, so "
            f"training has diverged; nothing more is saved; {FIX}, or use training.precision=bf16",
        ),
        (
            ["spike", "loss", "loss"],
            "steps 8 to 10: all have bad numbers: loss, spike, on samples 56 to 79, so training "
            f"has diverged; nothing more is saved; {FIX}",
        ),
    ],
)
def test_three_bad_steps_in_a_row_are_a_divergence(kinds: list[str], line: str) -> None:
    streak = SkipStreak(speaks=True)
    # Two, and then one that was applied, are none.
    for step, kind in enumerate((kinds[0], kinds[1], None, *kinds[:2]), start=5):
        streak.see(record_of(step, kind), samples_of(step))
        streak.check()
    streak.see(record_of(10, kinds[2]), samples_of(10))
    with pytest.raises(RootsError) as caught:
        streak.check()
    assert caught.value.exit_code is ExitCode.DIVERGED
    assert caught.value.lines == (line,)


def test_samples_that_were_jumped_over_are_not_named() -> None:
    streak = SkipStreak(speaks=True)
    for step, samples in enumerate([(24, 32), (40, 48), (48, 56)], start=4):
        streak.see(record_of(step, "loss"), samples)
    with pytest.raises(RootsError, match=", on samples 24 to 31, 40 to 55, so training"):
        streak.check()


def test_a_scale_that_goes_down_is_no_divergence() -> None:
    streak = SkipStreak(speaks=True)
    for step in range(1, 20):
        record = dataclasses.replace(record_of(step, None), skipped=True)
        streak.see(record, samples_of(step))
        streak.check()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_tensor_that_is_not_finite_is_named(value: float) -> None:
    whole, bad = torch.ones(3), torch.tensor([1.0, value], dtype=torch.bfloat16)
    refuse_what_is_not_finite([("a", [whole, torch.arange(3), torch.empty(0)])], 7, rank=1)
    with pytest.raises(RootsError) as caught:
        refuse_what_is_not_finite([("a", [whole]), ("b", [whole, bad]), ("c", [bad])], 7, rank=1)
    assert caught.value.exit_code is ExitCode.DIVERGED
    assert caught.value.lines == (
        "b: is not finite on rank 1 after step 7, so training has diverged; nothing is saved; "
        "resume from an earlier checkpoint with a lower optimizer.learning_rate",
    )


class SpoilMoments(Callback):
    """Makes one number of the optimizer's state infinite after step 2."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def on_step_end(self, record: StepRecord) -> None:
        if record.step == 2:
            moments = (
                each.data for each in self._engine.kept_pieces() if each.tensor[:8] == "exp_avg/"
            )
            max(moments, key=Tensor.numel)[0] = math.inf


def spoil_every_gradient(engine: Engine) -> None:
    next(engine.module.parameters()).register_hook(lambda gradient: gradient * math.nan)


def endings(
    rank: int, world_size: int, configs: list[RunConfig], spoil_gradients: bool
) -> list[tuple[int, tuple[str, ...]]]:
    """Exit code and lines of every run, one after the other in this process."""
    found = []
    environment = launch_environment()
    device = start_process(environment, environment.local_rank)
    for config in configs:
        with ExitStack() as stack:
            # Measuring the processor would take longer than the run.
            stack.enter_context(patch("roots.training.assemble.device_peak", return_value=PEAK))
            run = assemble(config, plan_batch(config, world_size), device, stack)
            if spoil_gradients:
                spoil_every_gradient(run.engine)
            else:
                spoil = SpoilMoments(run.engine)
                run = replace(run, callbacks=CallbackList([*run.callbacks, spoil]))
            try:
                found.append((int(train_loop(run)), ()))
            except RootsError as error:
                found.append((int(error.exit_code), error.lines))
    return found


PEAK = Peak(1e12, "assumed")


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("divergence") / "data")


def config_of(prefix: Path, folder: Path, name: str, every_steps: int) -> RunConfig:
    kind = KINDS[name]
    return small_config(
        prefix,
        folder,
        run={"name": name},
        parallel={"zero_stage": kind["zero_stage"]},
        training={"steps": 20, "precision": kind["precision"]},
        optimizer={"implementation": "torch"},
        loss_scale={"initial_power": 4},
        checkpoint={"every_steps": every_steps},
    )


def test_bad_gradients_with_a_finite_loss_end_the_run(prefix: Path, tmp_path: Path) -> None:
    configs = [config_of(prefix, tmp_path, name, every_steps=10) for name in KINDS]
    (found,) = run_distributed(endings, 1, configs, True)
    for config, (code, lines) in zip(configs, found, strict=True):
        (line,) = lines
        assert code == ExitCode.DIVERGED
        records = read_metrics(config.run_directory / "metrics.jsonl")
        assert all(record.skipped and math.isfinite(record.loss) for record in records)
        assert {record.overflow for record in records} == {CULPRIT}
        if config.training.precision == "fp16":
            # From 16 to 1 in four halvings, one overflow is tolerated, and then the usual three.
            assert line.startswith("steps 6 to 8: all have gradients that overflow at the lowest")
            assert f"{CULPRIT}, on samples 40 to 63, so training has diverged" in line
            assert [record.anomaly for record in records] == [None] * 5 + ["floor"] * 3
        else:
            assert line.startswith(f"steps 1 to 3: all have gradients that are not finite, first "
                                   f"that of {CULPRIT}, on samples 0 to 23, so")  # fmt: skip
            assert len(records) == 3
        assert list(config.run_directory.glob("checkpoints/step_*")) == []


def test_state_that_is_not_finite_is_never_saved(prefix: Path, tmp_path: Path) -> None:
    """The checkpoint before it is whole, and stays the latest."""
    configs = [config_of(prefix, tmp_path, name, every_steps=1) for name in KINDS]
    (found,) = run_distributed(endings, 1, configs, False)
    for config, (code, lines) in zip(configs, found, strict=True):
        (line,) = lines
        assert code == ExitCode.DIVERGED
        assert "is not finite on rank 0 after step 2, so training has diverged; nothing" in line
        root = config.run_directory / "checkpoints"
        assert [path.name for path in root.glob("step_*")] == ["step_00000001"]
        assert (root / "latest").read_text() == "step_00000001"
