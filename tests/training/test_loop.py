"""What the loop records of every step and evaluation, with an engine that only answers."""

from __future__ import annotations

import math
import signal
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
from roots.errors import ExitCode, RootsError
from roots.parallel.mesh import Mesh
from roots.training.callbacks.callback import Callback, CallbackList
from roots.training.callbacks.metrics import StepRecord
from roots.training.callbacks.peak import Peak
from roots.training.callbacks.throughput import Throughput
from roots.training.engine.checkpoint_state import EngineState
from roots.training.engine.step import StepResult
from roots.training.loop import Run, train_loop
from roots.training.resume_point import ResumePoint
from roots.training.saving import Saved
from roots.training.schedule import learning_rate
from roots.training.signals import StopSignals
from roots.training.stopping import Deadline
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

    def state(self) -> EngineState:
        return EngineState(len(self.rates))

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
        self.saver = self.local = self
        self.busy = self.in_flight = False
        self.prepared: list[int] = []
        self.beside: list[bool] = []

    def prepare(self, engine: Answers) -> None:
        self.prepared.append(engine.state().updates)

    def settle(self) -> None:
        pass

    def save(self, point: ResumePoint) -> None:
        self.saved.append(point)

    def after_step(self) -> None:
        pass

    def close(self, *, done: bool) -> None:
        assert done

    def start(self, engine: object, point: ResumePoint, *, beside: bool) -> None:
        self.beside.append(beside)
        self.save(point)
        self.in_flight = True

    def finish(self) -> Saved | None:
        if not self.in_flight:
            return None
        self.in_flight = False
        return Saved(Path("nowhere"), self.saved[-1].step, 0.0)


def parts(config: RunConfig, start: ResumePoint | None = None, **others: Any) -> Run:
    """A run whose engine, data and checkpoints are stand-ins, or `others`."""
    # Two replicas, of which this is the first.
    plan = replace(plan_batch(config, 1), data_parallel=2, accumulation=2)
    readers = [StepReader(Steps(), plan, 0, num_steps=n) for n in (STEPS, config.evaluation.steps)]
    stand_ins: dict[str, Any] = {
        "engine": Answers(),
        "checkpointer": NoCheckpoints(),
        "callbacks": CallbackList([]),
        "data": DataSources(TrainSource(readers[0]), ValidSource(readers[1]), [], []),
    }
    return Run(
        config=config,
        plan=plan,
        mesh=Mesh.single(),
        device=Device("cpu", 0),
        throughput=Throughput(config.model, Peak(1e12, "a device"), num_devices=1),
        start=ResumePoint(0, 0) if start is None else start,
        **{**stand_ins, **others},
    )


def trained(config: RunConfig, start: ResumePoint) -> tuple[Answers, Listener, NoCheckpoints]:
    engine, listener, checkpoints = Answers(), Listener(), NoCheckpoints()
    callbacks = CallbackList([listener])
    run = parts(config, start, engine=engine, callbacks=callbacks, checkpointer=checkpoints)
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
    assert checkpoints.beside == [True, False]


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


class AsksToStop(Answers, NoCheckpoints, Listener):
    """Gets a signal in the middle of `moment`: "evaluation 0", "step 4", "save 4", ..."""

    def __init__(self, moment: str) -> None:
        for base in (Answers, NoCheckpoints, Listener):
            base.__init__(self)
        self.moment = moment
        self.done = 0
        self.batches = 0

    def _at(self, moment: str) -> None:
        if moment == self.moment:
            signal.raise_signal(signal.SIGUSR1)

    def train_step(self, micro_batches: Sequence[Batch], rate: float) -> StepResult:
        self.done += 1
        self._at(f"step {self.done}")
        return super().train_step(micro_batches, rate)

    def evaluate(self, micro_batches: Sequence[Batch]) -> float:
        self._at(f"evaluation {self.done}")
        self.batches += 1
        return super().evaluate(micro_batches)

    def save(self, point: ResumePoint) -> None:
        self._at(f"save {point.step}")
        super().save(point)


@pytest.mark.parametrize(
    "moment, steps, evaluated, batches",
    [
        ("start", [], [], 0),
        ("evaluation 0", [], [], 1),
        ("step 2", [2], [0], 3),
        ("step 4", [4], [0], 3),
        ("evaluation 4", [4], [0], 4),
        ("save 4", [4], [0, 4], 6),
    ],
)
def test_signal_stops_after_what_is_being_done_and_saves_once(
    config: RunConfig, moment: str, steps: list[int], evaluated: list[int], batches: int
) -> None:
    """Before the first step and in an evaluation too; a save that it meets is the last."""
    part = AsksToStop(moment)
    run = parts(config, engine=part, checkpointer=part, callbacks=CallbackList([part]))
    with StopSignals() as signals:
        if moment == "start":
            signal.raise_signal(signal.SIGTERM)
        assert train_loop(run, signals) is ExitCode.INTERRUPTED
    assert [point.step for point in part.saved] == steps
    assert list(part.evaluations) == evaluated
    assert part.batches == batches


@pytest.mark.parametrize("step", [4, STEPS])
def test_evaluation_that_was_broken_off_is_made_up(config: RunConfig, step: int) -> None:
    """At the same step, before the next; not what was measured, or was not due."""
    batch = config.training.global_batch_size
    later = [6] if step < 6 else []
    for start, evaluated in (
        (ResumePoint(step, step * batch), [step, *later]),
        (ResumePoint(step, step * batch, evaluation=2.5), later),
        (ResumePoint(3, 3 * batch), [4, 6]),
    ):
        _, listener, _ = trained(config, start)
        assert list(listener.evaluations) == evaluated


def test_signal_in_the_last_evaluation_ends_a_run_that_is_done(config: RunConfig) -> None:
    part = AsksToStop(f"evaluation {STEPS}")
    assert train_loop(parts(config, engine=part, checkpointer=part)) is ExitCode.DONE
    assert [point.step for point in part.saved] == [4, STEPS]


def test_run_stops_saved_before_its_time_is_over(
    config: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    clock = iter(range(1000))
    # Each look at the clock takes a second: three in the first evaluation, one before each step.
    deadline = Deadline(10.0, 1.0, 2.0, clock=lambda: float(next(clock)))
    checkpoints = NoCheckpoints()
    run = parts(config, deadline=deadline, checkpointer=checkpoints)
    with caplog.at_level("INFO", logger="roots"):
        assert train_loop(run) is ExitCode.INTERRUPTED
    assert [point.step for point in checkpoints.saved] == [2]
    assert caplog.messages == ["stopped by stop.wall_clock after step 2, saved nowhere"]


class Broken:
    """Train or held-out data of which batch `bad` cannot be read."""

    def __init__(self, bad: int) -> None:
        self.bad = bad

    def make(self, step: int, places: tuple[int, ...]) -> Batch:
        if step == self.bad:
            raise RootsError("data.bin: cannot be read")
        return Steps().make(step, places)


@pytest.mark.parametrize("source, saved", [("train", 3), ("valid", 4)])
def test_data_that_cannot_be_read_ends_the_run_after_a_save(
    config: RunConfig, source: str, saved: int
) -> None:
    checkpoints = NoCheckpoints()
    run = parts(config, ResumePoint(1, 8), checkpointer=checkpoints)
    reader = StepReader(Broken(3 if source == "train" else 1), run.plan, 0, num_steps=STEPS)
    sources = (
        {"train": TrainSource(reader)} if source == "train" else {"valid": ValidSource(reader)}
    )
    with pytest.raises(RootsError) as caught:
        train_loop(replace(run, data=replace(run.data, **sources)))
    assert (caught.value.lines, caught.value.exit_code) == (("data.bin: cannot be read",), 2)
    assert [point.step for point in checkpoints.saved] == [saved]


class FullDisk(NoCheckpoints):
    """Has no room at `full` steps."""

    def __init__(self, full: Sequence[int], code: ExitCode = ExitCode.NOT_SAVED) -> None:
        super().__init__()
        self.full = full
        self.code = code

    def save(self, point: ResumePoint) -> None:
        if point.step in self.full:
            raise RootsError(f"no room at {point.step}", exit_code=self.code)
        super().save(point)


def test_save_that_finds_no_room_is_a_warning_and_training_goes_on(
    config: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    disk = FullDisk([4])
    assert train_loop(parts(config, checkpointer=disk)) is ExitCode.DONE
    assert [point.step for point in disk.saved] == [STEPS]
    assert caplog.messages == ["not saved, training goes on: no room at 4"]


@pytest.mark.parametrize("moment", ["nothing", "step 2"])
def test_last_save_that_finds_no_room_is_told_by_the_exit_code(
    config: RunConfig, moment: str
) -> None:
    disk = FullDisk([2, STEPS])
    with pytest.raises(RootsError, match=r"no room at [26]") as caught:
        train_loop(parts(config, engine=AsksToStop(moment), checkpointer=disk))
    assert caught.value.exit_code is ExitCode.NOT_SAVED


def test_save_that_fails_for_another_reason_ends_the_run(config: RunConfig) -> None:
    disk = FullDisk([4], ExitCode.DIVERGED)
    with pytest.raises(RootsError) as caught:
        train_loop(parts(config, checkpointer=disk))
    assert caught.value.exit_code is ExitCode.DIVERGED


def test_run_without_data_and_without_room_tells_both(config: RunConfig) -> None:
    run = parts(config, ResumePoint(1, 8), checkpointer=FullDisk([3]))
    reader = StepReader(Broken(3), run.plan, 0, num_steps=STEPS)
    with pytest.raises(RootsError) as caught:
        train_loop(replace(run, data=replace(run.data, train=TrainSource(reader))))
    assert caught.value.lines == ("data.bin: cannot be read", "no room at 3")
    assert caught.value.exit_code is ExitCode.NOT_SAVED


@pytest.mark.parametrize(("every_steps", "prepared"), [(0, []), (3, [1]), (STEPS, [])])
def test_memory_for_saves_beside_training_is_made_once_if_there_are_any(
    tmp_path: Path, every_steps: int, prepared: list[int]
) -> None:
    """When the optimizer has its state, which it lacks before the first step."""
    sections = {"training": {"steps": STEPS}, "checkpoint": {"every_steps": every_steps}}
    run = parts(small_config(tmp_path / "data", tmp_path, **sections))
    train_loop(run)
    assert run.checkpointer.prepared == prepared
