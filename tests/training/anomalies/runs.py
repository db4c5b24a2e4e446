"""Whole small runs whose data or gradients are bad in places, and runs that never saw these."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from roots.config import RunConfig
from roots.config.batch import plan_batch
from roots.data.batch import Batch
from roots.data.build import build_data
from roots.data.loader import StepReader
from roots.device import launch_environment
from roots.errors import RootsError
from roots.parallel.mesh import Mesh
from roots.training.anomalies.event_log import ANOMALIES_FILE
from roots.training.assemble import assemble, build_engine, start_process, topology_of
from roots.training.callbacks.callback import Callback, CallbackList
from roots.training.callbacks.metrics import StepRecord, read_metrics
from roots.training.callbacks.peak import Peak
from roots.training.engine.step import Engine
from roots.training.loop import Run, train_loop
from roots.training.schedule import learning_rate

PEAK = Peak(1e12, "assumed")
State = dict[str, Tensor | float]


@dataclass(frozen=True)
class Fault:
    """What is bad: the loss weights of some steps of the data are multiplied by `factor`, or, in
    the steps `gradients` when they are made for the first time, a gradient of the last rank is NaN.
    """

    data_steps: tuple[int, ...] = ()
    factor: float = 1.0
    gradients: tuple[int, ...] = ()


@dataclass
class Outcome:
    """How a run on one rank has ended, its records, events and final state."""

    code: int
    lines: tuple[str, ...]
    records: list[StepRecord] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    state: State = field(default_factory=dict)


class BadGradients(Callback):
    """Plants NaN in one element of a gradient of the last rank."""

    def __init__(self, engine: Engine, steps: Sequence[int]) -> None:
        self._engine, self._steps = engine, set(steps)

    def on_step_start(self, step: int) -> None:
        mesh = self._engine.mesh
        if step not in self._steps or mesh.rank != mesh.world.size - 1:
            return
        self._steps.remove(step)

        def spoil(gradient: Tensor) -> Tensor:
            handle.remove()
            gradient = gradient.clone()
            gradient.view(-1)[0] = torch.nan
            return gradient

        handle = next(self._engine.module.parameters()).register_hook(spoil)


def bad_run(
    config: RunConfig,
    fault: Fault,
    watchers: Callable[[Run], list[Callback]] = lambda run: [],
    saves: bool = False,
) -> Outcome:
    """Train `config` as this process's rank, its numbers spoiled by `fault`."""
    environment = launch_environment()
    device = start_process(environment, environment.local_rank)
    plan = plan_batch(config, environment.world_size)
    with ExitStack() as stack:
        # Measuring the processor would take longer than the run.
        stack.enter_context(patch("roots.training.assemble.device_peak", return_value=PEAK))
        stack.enter_context(bad_data(fault))
        if not saves:
            stack.enter_context(patch("roots.training.loop._Saves.save"))
        run = assemble(config, plan, device, stack)
        mine = [BadGradients(run.engine, fault.gradients), *watchers(run)]
        run = replace(run, callbacks=CallbackList([*run.callbacks, *mine]))
        try:
            outcome = Outcome(int(train_loop(run)), ())
        except RootsError as error:
            outcome = Outcome(int(error.exit_code), error.lines)
        outcome.state = state_of(run.engine)
    if run.mesh.rank == 0:
        outcome.records = read_metrics(config.run_directory / "metrics.jsonl")
        events = config.run_directory / ANOMALIES_FILE
        if events.exists():
            outcome.events = [json.loads(line) for line in events.read_text().splitlines()]
    return outcome


@contextmanager
def bad_data(fault: Fault) -> Iterator[None]:
    """Within it steps of the data are read as `fault` says."""
    read = StepReader.read

    def spoiled(self: StepReader, step: int) -> list[Batch]:
        batches = read(self, step)
        if step not in fault.data_steps:
            return batches
        return [
            batch._replace(loss_weights_BT=batch.loss_weights_BT * fault.factor)
            for batch in batches
        ]

    with patch.object(StepReader, "read", spoiled):
        yield


def clean_run(config: RunConfig, data_steps: Sequence[int | None]) -> State:
    """The state after training on these steps of the data, None for a step that is left out."""
    environment = launch_environment()
    device = start_process(environment, environment.local_rank)
    plan = plan_batch(config, environment.world_size)
    mesh = Mesh.create(topology_of(config, plan))
    data = build_data(config, plan, mesh.data.rank)
    engine = build_engine(config, plan, mesh, device)
    for step, number in enumerate(data_steps):
        if number is None:
            continue
        rate = learning_rate(
            config.schedule,
            config.optimizer.learning_rate,
            step,
            config.training.steps,
            config.tokens_per_step,
        )
        assert not engine.train_step(data.train._reader.read(number), rate).skipped
    return state_of(engine)


def state_of(engine: Engine) -> State:
    """All that a checkpoint of `engine` would hold on this rank."""
    tensors = {piece.tensor: piece.data.clone() for piece in engine.kept_pieces()}
    return {**tensors, "loss scale": engine.loss_scale, "updates": engine.state().updates}


def differing(mine: State, right: State) -> list[str]:
    """Names of what is not the same, bit for bit."""
    assert mine.keys() == right.keys()
    return [name for name, value in mine.items() if not _equal(value, right[name])]


def _equal(first: Tensor | float, second: Tensor | float) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.equal(first, second)
    return bool(first == second)
