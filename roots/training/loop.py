"""The training loop: steps, stop conditions, and the order in which callbacks hear of them."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from roots.config.batch import BatchPlan
from roots.config.run import RunConfig
from roots.data.batch import Batch
from roots.data.build import DataSources
from roots.device import Device, memory_bytes, synchronize
from roots.errors import ExitCode, RootsError
from roots.log import get_logger
from roots.parallel.mesh import Mesh
from roots.parallel.process import all_reduce_max
from roots.parallel.shared_errors import together
from roots.training.callbacks.callback import CallbackList
from roots.training.callbacks.metrics import StepRecord
from roots.training.callbacks.overview import closing_lines
from roots.training.callbacks.throughput import Rates, Throughput
from roots.training.checkpointing import Checkpointer, ResumePoint
from roots.training.course import finished_line
from roots.training.divergence import SkipStreak
from roots.training.engine.step import Engine, StepResult
from roots.training.schedule import learning_rate
from roots.training.signals import StopSignals

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


def train_loop(run: Run) -> ExitCode:
    """Train from `run.start` to training.steps, or until a signal asks to stop.

    Evaluates before the first step and then, like saving, as the config says and at the end.
    Returns DONE, or INTERRUPTED after the checkpoint that a stop leaves behind.
    """
    config, point = run.config, run.start
    saved: Path | None = None
    skips = SkipStreak(config.training.precision, speaks=run.mesh.rank == 0)
    with StopSignals() as signals, ExitStack() as stack:
        stack.callback(run.callbacks.on_train_end)
        run.callbacks.on_train_start(point.step)
        if point.step == 0 and config.evaluation.every_steps > 0:
            _evaluate(run, 0)
        for micro_batches, state in run.data.train.iterate(point.step):
            if point.step >= config.training.steps:
                break
            record = _one_step(run, point, micro_batches)
            point = ResumePoint(record.step, state.consumed_samples)
            run.callbacks.on_step_end(record)
            skips.see(record)
            last = point.step >= config.training.steps
            stop = _anyone_stops(run, signals)
            # Whoever asks to stop may not wait for an evaluation.
            if _evaluation_due(config, point.step, last) and not stop:
                point = replace(point, evaluation=_evaluate(run, point.step))
            if stop or last or _due(point.step, config.checkpoint.every_steps):
                saved = _save(run, point)
                run.callbacks.on_checkpoint_end(saved)
            if stop:
                break
        together(run.mesh.world, run.callbacks.check)
    if point.step < config.training.steps:
        name = signals.received or "a signal on another rank"
        _logger.info("stopped by %s after step %d, saved %s", name, point.step, saved)
        return ExitCode.INTERRUPTED
    if run.start.step >= config.training.steps:
        _logger.info("%s", finished_line(config, run.start.step))
    for line in closing_lines(config):
        _logger.info("%s", line)
    return ExitCode.DONE


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
        **{f"expert_{name}": value for name, value in load.items()},
    )


def _largest_memory(run: Run) -> int:
    """Peak bytes of the rank that needs most: what decides whether a layout fits."""
    mine = torch.tensor([memory_bytes(run.device)], device=run.device.torch)
    return int(all_reduce_max(run.mesh.world, mine).item())


def _save(run: Run, point: ResumePoint) -> Path:
    """Save a checkpoint; what already keeps the run from going on is told with why it fails."""
    try:
        return run.checkpointer.save(run.engine, point)
    except RootsError as error:
        failure = run.callbacks.failure
        if failure is None:
            raise
        raise RootsError(*failure.lines, *error.lines, speaks=error.speaks) from error


def _evaluate(run: Run, step: int) -> float | None:
    """Measure the held-out loss after `step` and tell it; return it if it is finite."""
    assert run.data.valid is not None, "evaluation is due without held-out data"
    batches = run.data.valid.batches(run.config.evaluation.steps)
    losses = [run.engine.evaluate(micro_batches) for micro_batches in batches]
    loss = sum(losses) / len(losses)
    run.callbacks.on_evaluate_end(step, loss)
    return loss if math.isfinite(loss) else None


def _anyone_stops(run: Run, signals: StopSignals) -> bool:
    """Whether any rank has to stop, equal on all ranks, since a step needs all of them."""
    mine = signals.stop_requested() or run.callbacks.failure is not None
    flag = torch.tensor([float(mine)], device=run.device.torch)
    return bool(all_reduce_max(run.mesh.world, flag).item())


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _evaluation_due(config: RunConfig, step: int, last: bool) -> bool:
    every = config.evaluation.every_steps
    return _due(step, every) or (last and every > 0)
