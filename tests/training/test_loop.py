"""What the loop records of every step and evaluation, with an engine that only answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from roots.config import RunConfig
from roots.config.batch import plan_batch
from roots.data.batch import Batch
from roots.data.build import DataSources
from roots.data.loader import StepReader, TrainSource, ValidSource
from roots.data.objectives.rows import sequence_batch
from roots.device import Device
from roots.errors import ExitCode
from roots.parallel.mesh import Mesh
from roots.training.callbacks.callback import Callback, CallbackList
from roots.training.callbacks.metrics import StepRecord
from roots.training.callbacks.peak import Peak
from roots.training.callbacks.throughput import Throughput
from roots.training.checkpointing import ResumePoint
from roots.training.engine.step import StepResult
from roots.training.loop import Run, train_loop
from roots.training.schedule import learning_rate
from tests.helpers.runs import small_config

STEPS = 6


class Answers:
    """An engine: the loss of a step is 10 minus its first token, of an evaluation its first."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def train_step(self, micro_batches: Sequence[Batch], rate: float) -> StepResult:
        self.rates.append(rate)
        first = float(micro_batches[0].tokens_BT[0, 0])
        return StepResult(10.0 - first, 3.0 + first, 64.0, skipped=False)

    def evaluate(self, micro_batches: Sequence[Batch]) -> float:
        return 2.0 ** float(micro_batches[0].tokens_BT[0, 0])


class Steps:
    """Batches whose every token is the number of their step."""

    def make(self, step: int, places: tuple[int, ...]) -> Batch:
        row, rows = torch.full((16,), step).numpy(), len(places)
        keys, shape = [0] * rows, (1, 16)
        return sequence_batch([row[:1]] * rows, [row] * rows, keys, begin=step, shape=shape)


class Listener(Callback):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.records: list[StepRecord] = []
        self.evaluations: dict[int, float] = {}

    def on_step_end(self, record: StepRecord) -> None:
        self.records.append(record)

    def on_evaluate_end(self, step: int, loss: float) -> None:
        self.evaluations[step] = loss


class NoCheckpoints:
    """Remembers what it was asked to save."""

    def __init__(self) -> None:
        self.saved: list[ResumePoint] = []

    def save(self, engine: object, point: ResumePoint) -> Path:
        self.saved.append(point)
        return Path("nowhere")


def trained(config: RunConfig, start: ResumePoint) -> tuple[Answers, Listener, NoCheckpoints]:
    # Two replicas, of which this is the first.
    plan = replace(plan_batch(config, 1), data_parallel=2, accumulation=2)
    engine, listener, checkpoints = Answers(), Listener(), NoCheckpoints()
    readers = [StepReader(Steps(), plan, 0, num_steps=n) for n in (STEPS, config.evaluation.steps)]
    answers: dict[str, Any] = {"engine": engine, "checkpointer": checkpoints}
    run = Run(
        config=config,
        plan=plan,
        mesh=Mesh.single(),
        device=Device("cpu", 0),
        data=DataSources(TrainSource(readers[0]), ValidSource(readers[1]), [], []),
        callbacks=CallbackList([listener]),
        throughput=Throughput(config.model, Peak(1e12, "a device"), num_devices=1),
        start=start,
        **answers,
    )
    assert train_loop(run) is ExitCode.DONE
    return engine, listener, checkpoints


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return small_config(
        tmp_path / "data",
        tmp_path,
        training={"steps": STEPS},
        evaluation={"every_steps": 4, "steps": 3},
        schedule={"warmup_steps": 3, "min_learning_rate": 1e-4},
        checkpoint={"every_steps": 4},
    )


def rate_of(config: RunConfig, step: int) -> float:
    peak, tokens = config.optimizer.learning_rate, config.tokens_per_step
    return learning_rate(config.schedule, peak, step, STEPS, tokens)


def test_records_tell_of_every_step_what_it_was(config: RunConfig) -> None:
    engine, listener, _ = trained(config, ResumePoint(0, 0))
    batch, length = config.training.global_batch_size, config.model.sequence_length
    # The update that follows s finished ones has the rate of s, and reads the batch of step s.
    assert engine.rates == [rate_of(config, step) for step in range(STEPS)]
    assert engine.rates[0] == pytest.approx(config.optimizer.learning_rate / 3)
    for done, record in enumerate(listener.records):
        assert record.step == done + 1
        assert record.consumed_samples == (done + 1) * batch
        assert record.consumed_tokens == (done + 1) * batch * length
        assert (record.loss, record.grad_norm, record.loss_scale) == (10.0 - done, 3.0 + done, 64.0)
        assert record.lr == engine.rates[done]
        seconds = record.step_seconds
        assert record.tokens_per_second == pytest.approx(batch * length / seconds)


def test_evaluation_is_the_mean_of_its_batches(config: RunConfig) -> None:
    """Before the first step, at its interval and at the end: batches 0, 1 and 2 every time."""
    _, listener, _ = trained(config, ResumePoint(0, 0))
    assert listener.evaluations == dict.fromkeys((0, 4, 6), (1.0 + 2.0 + 4.0) / 3)


def test_resumed_run_goes_on_where_it_was(config: RunConfig) -> None:
    batch = config.training.global_batch_size
    engine, listener, checkpoints = trained(config, ResumePoint(3, 3 * batch))
    assert engine.rates == [rate_of(config, step) for step in (3, 4, 5)]
    assert [record.loss for record in listener.records] == [10.0 - step for step in (3, 4, 5)]
    assert [record.step for record in listener.records] == [4, 5, 6]
    loss = (1.0 + 2.0 + 4.0) / 3
    assert checkpoints.saved == [
        ResumePoint(step, step * batch, evaluation=loss) for step in (4, 6)
    ]


@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_saves_know_the_losses_measured_at_their_step_that_are_finite(
    config: RunConfig, loss: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = config.checkpoint.model_copy(update={"every_steps": 2})
    config = config.model_copy(update={"checkpoint": checkpoint})
    losses = iter([3.0] * 3 + [2.0] * 3 + [loss] * 3)
    monkeypatch.setattr(Answers, "evaluate", lambda self, batches: next(losses))
    _, _, checkpoints = trained(config, ResumePoint(0, 0))
    found = [(point.step, point.evaluation) for point in checkpoints.saved]
    assert found == [(2, None), (4, 2.0), (6, None)]
