"""The training loop: steps, stop conditions, and the order in which callbacks hear of them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from roots.config.batch import BatchPlan
from roots.config.run import RunConfig
from roots.data.batch import Batch
from roots.data.build import DataSources
from roots.data.sampler import DataState
from roots.device import Device, memory_bytes, synchronize
from roots.errors import ExitCode, RootsError
from roots.evaluation.harness.in_training import TaskEvaluation
from roots.log import get_logger
from roots.parallel.mesh import Mesh
from roots.parallel.process import all_reduce_max
from roots.parallel.shared_errors import together
from roots.training.anomalies.checks import Checks
from roots.training.anomalies.event_log import ANOMALIES_FILE, RANK_TIMES_FILE, EventLog
from roots.training.anomalies.guard import Guard
from roots.training.anomalies.stream import BatchStream
from roots.training.callbacks.callback import CallbackList
from roots.training.callbacks.ledger import Ledger
from roots.training.callbacks.metrics import StepRecord
from roots.training.callbacks.overview import closing_lines
from roots.training.callbacks.throughput import Rates, Throughput
from roots.training.checkpointing import Checkpointer
from roots.training.course import finished_line
from roots.training.engine.step import Engine, StepResult
from roots.training.resume_point import ResumePoint
from roots.training.schedule import learning_rate
from roots.training.signals import StopSignals
from roots.training.stopping import Deadline, Feed, Stopping

_logger = get_logger(__name__)


@dataclass(frozen=True)
class Run:
    """Everything a run consists of, put together by assemble.py."""

    config: RunConfig
    plan: BatchPlan
    mesh: Mesh
    device: Device
    engine: Engine
    data: DataSources
    callbacks: CallbackList
    checkpointer: Checkpointer
    throughput: Throughput
    start: ResumePoint
    deadline: Deadline = field(default_factory=Deadline)
    ledger: Ledger = field(default_factory=Ledger)
    tasks: TaskEvaluation | None = None

    def events(self) -> dict[str, EventLog]:
        """The files of events by name, which rank 0 writes. Called by all ranks.

        Raises RootsError where one cannot be written.
        """
        folder = self.config.run_directory if self.mesh.rank == 0 else None
        jumped_over = self.start.history.get("skipped", [])

        def open_all() -> dict[str, EventLog]:
            names = (ANOMALIES_FILE, RANK_TIMES_FILE)
            paths = {name: None if folder is None else folder / name for name in names}
            return {
                name: EventLog(path, self.start.step, jumped_over) for name, path in paths.items()
            }

        return together(self.mesh.world, open_all)


def train_loop(run: Run, signals: StopSignals | None = None) -> ExitCode:
    """Train from `run.start` to training.steps, or until something stops the run (stopping.py).

    Evaluates before the first step and then, like saving, as the config says and at the end; what
    a stop has broken off is made up where the run goes on.
    `signals`: the entered context of signals, by default one that is entered here.
    Returns DONE, or INTERRUPTED after the checkpoint that a stop leaves behind. Raises RootsError
    after it for data that cannot be read, and with NOT_SAVED where it could not be written.
    """
    config, point = run.config, run.start
    with ExitStack() as stack:
        signals = stack.enter_context(StopSignals()) if signals is None else signals
        stopping = Stopping(run.mesh, run.device, signals, run.deadline)
        saves = _Saves(run)
        stack.callback(run.callbacks.on_train_end)
        run.ledger.begin(point.step)
        run.callbacks.on_train_start(point.step)
        steps = _Steps(run)
        stack.callback(steps.close)
        at_end = point.step >= config.training.steps
        if point.evaluation is None and _evaluation_due(config, point.step, at_end):
            _evaluated(run, point, stopping)
        feed = Feed(steps.stream)
        while point.step < config.training.steps:
            with run.ledger.span("data"):
                item = feed.advance().item
            if stopping.decide(feed.failure, run.checkpointer.saver.busy) or item is None:
                break
            if not stopping.busy:
                saves.finish()
                saves.prepare()
            point, back = steps.make(point, *item)
            if back:
                run.checkpointer.local.go_back(point.step)
                continue
            run.checkpointer.local.after_step()
            last = point.step >= config.training.steps
            if _evaluation_due(config, point.step, last):
                point = _evaluated(run, point, stopping)
            due = not last and _due(point.step, config.checkpoint.every_steps)
            if due:
                saves.save(point, last=False)
            elif not last and _due(point.step, config.checkpoint.local_every_steps):
                with run.ledger.span("checkpoint"):
                    copied = run.checkpointer.local.start(run.engine, point)
                if copied:
                    run.ledger.copied()
            steps.guard.passed(point, saved=due)
        saves.save(point, last=True, besides=stopping.data_lines())
    if point.step < config.training.steps:
        _logger.info("%s", saves.stopped_line(stopping, point.step))
        return ExitCode.INTERRUPTED
    run.checkpointer.local.close(done=True)
    if run.start.step >= config.training.steps:
        _logger.info("%s", finished_line(config, run.start.step))
    for line in closing_lines(config):
        _logger.info("%s", line)
    return ExitCode.DONE


class _Steps:
    """The steps of a run, whose numbers and machines are looked after (anomalies/)."""

    def __init__(self, run: Run) -> None:
        self._run, start = run, run.start
        self._size = run.plan.global_batch_size
        self._events = run.events()
        self.guard = Guard(run.config, run.engine, run.mesh, start, self._events[ANOMALIES_FILE])
        self._checks = Checks(run.config, run.engine, self._events[RANK_TIMES_FILE])
        self.stream = BatchStream(run.data.train, start.consumed_samples, self.guard.skipped)

    def close(self) -> None:
        """Nothing more is made."""
        for events in self._events.values():
            events.close()

    def make(
        self, point: ResumePoint, micro_batches: list[Batch], state: DataState
    ) -> tuple[ResumePoint, bool]:
        """Train a global batch after `point`: where the run then is, and whether it went back."""
        run = self._run
        # What is jumped over counts as consumed.
        point = replace(point, consumed_samples=state.consumed_samples - self._size)
        self._checks.before_step(point.step + 1, micro_batches, self.stream.seconds)
        record = _one_step(run, point, micro_batches)
        run.ledger.step_done(record.step)
        run.callbacks.on_step_end(record)
        for events in self._events.values():
            events.begin()
        self._checks.after_step(record.step)
        back = self.guard.see(record, (point.consumed_samples, state.consumed_samples))
        if back is not None:
            self.stream.go_to(back.consumed_samples, self.guard.skipped)
            run.ledger.rewound(back.step)
            run.callbacks.on_rewind(back.step)
            return back, True
        history, data = self.guard.history(), point.data
        best = (run.config.checkpoint.keep_best_by, None)
        after = ResumePoint(
            record.step, state.consumed_samples, best=best, history=history, data=data
        )
        return after, False


class _Saves:
    """The checkpoints of a run: which point was saved last, and what the disk did not take."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._step = run.start.step
        self._folder: Path | None = None
        self._prepared = False
        # Of the next step, which may have to wait for a copy of what it is about to change.
        run.checkpointer.saver.waiting = lambda: run.ledger.span("checkpoint")

    def prepare(self) -> None:
        """Make memory for the first save beside training, once the optimizer has its state."""
        config = self._run.config
        due = 0 < config.checkpoint.every_steps < config.training.steps
        if due and not self._prepared and self._run.engine.state().updates > 0:
            self._prepared = True
            self._run.checkpointer.saver.prepare(self._run.engine)

    def save(self, point: ResumePoint, *, last: bool, besides: Sequence[str] = ()) -> None:
        """Save `point`, unless that has begun already; the `last` is whole on return.

        What the disk does not take is a warning: the checkpoints before are untouched, and training
        goes on. Raises RootsError with NOT_SAVED if it is the `last`, and for what else fails.
        `besides`: lines on what ended the run; they are raised in any case.
        """
        try:
            if point.step != self._step:
                self.finish()
                self._begin(point, last=last)
            # Without a copy in memory it has been written by now.
            if last or not self._run.config.checkpoint.asynchronous:
                self.finish(last=last)
            if last:
                self._run.checkpointer.saver.settle()
        except RootsError as error:
            lines, code = (*besides, *error.lines), error.exit_code
            raise RootsError(*lines, exit_code=code, speaks=error.speaks) from error
        if besides:
            raise RootsError(*besides, speaks=self._run.mesh.rank == 0)

    def finish(self, *, last: bool = False) -> None:
        """Wait for the save in flight, if there is one, and tell of its checkpoint."""
        if not self._run.checkpointer.saver.in_flight:
            return
        with self._saving(last):
            saved = self._run.checkpointer.finish()
            if saved is not None:
                self._run.ledger.written(saved.step, saved.write_seconds, saved.num_bytes)
                self._folder = saved.path
                self._run.deadline.note_save(saved.stall_seconds + saved.write_seconds)
                self._run.callbacks.on_checkpoint_end(saved.path, saved.record())

    def _begin(self, point: ResumePoint, *, last: bool) -> None:
        with self._saving(last):
            self._step = point.step
            # Nothing goes on beside the last.
            self._run.checkpointer.start(self._run.engine, point, beside=not last)
            self._run.ledger.saved()

    @contextmanager
    def _saving(self, last: bool) -> Iterator[None]:
        """Within it training waits; a full disk is a warning, but for the last checkpoint."""
        try:
            with self._run.ledger.span("checkpoint"), self._run.deadline.saving():
                yield
        except RootsError as error:
            self._run.ledger.not_saved(self._step)
            if last or error.exit_code != ExitCode.NOT_SAVED:
                raise
            self._step = -1
            if error.speaks:
                for line in error.lines:
                    _logger.warning("not saved, training goes on: %s", line)

    def stopped_line(self, stopping: Stopping, step: int) -> str:
        """What to say of a run that was stopped after `step` steps, which are saved."""
        saved = "nothing new to save" if self._folder is None else f"saved {self._folder}"
        return f"stopped by {stopping.describe()} after step {step}, {saved}"


def _one_step(run: Run, point: ResumePoint, micro_batches: list[Batch]) -> StepRecord:
    """Train one global batch and measure it."""
    step = point.step
    run.callbacks.on_step_start(step + 1)
    rate = learning_rate(
        run.config.schedule,
        run.config.optimizer.learning_rate,
        step,
        run.config.training.steps,
        run.config.tokens_per_step,
    )
    started = time.perf_counter()
    with run.ledger.span("compute"):
        result = run.engine.train_step(micro_batches, rate)
        synchronize(run.device)
    seconds = time.perf_counter() - started
    speed = run.throughput.rates(run.plan.global_batch_size, micro_batches, seconds)
    return _record(run, point, result, rate, seconds, speed)


def _record(
    run: Run, point: ResumePoint, result: StepResult, rate: float, seconds: float, speed: Rates
) -> StepRecord:
    samples = point.consumed_samples + run.plan.global_batch_size
    load = {} if result.experts is None else asdict(result.experts)
    return StepRecord(
        step=point.step + 1,
        consumed_samples=samples,
        consumed_tokens=samples * run.config.model.sequence_length,
        loss=result.loss,
        lr=rate,
        grad_norm=math.nan if result.grad_norm is None else result.grad_norm,
        loss_scale=result.loss_scale,
        skipped=result.skipped,
        step_seconds=seconds,
        tokens_per_second=speed.tokens_per_second,
        tflops=speed.tflops,
        mfu=speed.mfu,
        memory_bytes=_largest_memory(run),
        overflow=result.overflow,
        anomaly=result.anomaly,
        **{f"expert_{name}": value for name, value in load.items()},
    )


def _largest_memory(run: Run) -> int:
    """Peak bytes of the rank that needs most: what decides whether a layout fits."""
    mine = torch.tensor([memory_bytes(run.device)], device=run.device.torch)
    return int(all_reduce_max(run.mesh.world, mine).item())


def _evaluated(run: Run, point: ResumePoint, stopping: Stopping) -> ResumePoint:
    """Measure the model at `point` and tell what it is; the point with what is finite of that.

    Whoever asks to stop does not wait for it: the point as it was then, and nothing is told.
    """
    step = point.step
    assert run.data.valid is not None, "evaluation is due without held-out data"
    feed = Feed(run.data.valid.batches(run.config.evaluation.steps))
    losses: list[float] = []
    with run.ledger.span("evaluation"):
        while not stopping.decide(feed.advance().failure, run.checkpointer.saver.busy):
            if feed.item is None:
                loss = sum(losses) / len(losses)
                if run.tasks is not None and run.tasks.due(step, step >= run.config.training.steps):
                    scores = run.tasks.scores(run.engine.weights())
                    point = replace(point, best=run.tasks.cost(scores))
                    run.callbacks.on_tasks_end(step, scores)
                run.callbacks.on_evaluate_end(step, loss)
                return replace(point, evaluation=loss if math.isfinite(loss) else None)
            losses.append(run.engine.evaluate(feed.item))
    return point


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _evaluation_due(config: RunConfig, step: int, last: bool) -> bool:
    every = config.evaluation.every_steps
    return _due(step, every) or (last and every > 0)
