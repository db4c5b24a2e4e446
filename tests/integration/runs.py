"""What one rank of an integration test does: a whole run, stopped by a real signal if asked."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from roots.checkpoint.boxes import Piece
from roots.checkpoint.manifest import read_manifest
from roots.checkpoint.store import TensorStore
from roots.config import RunConfig
from roots.config.batch import plan_batch
from roots.device import launch_environment
from roots.errors import ExitCode
from roots.parallel.shard import replicated
from roots.training.assemble import assemble, start_process
from roots.training.callbacks.callback import Callback, CallbackList
from roots.training.callbacks.metrics import StepRecord
from roots.training.callbacks.peak import Peak
from roots.training.loop import train_loop

PEAK = Peak(1e12, "assumed")


class SignalAfter(Callback):
    """Sends this process a signal when `step` is done."""

    def __init__(self, step: int, number: signal.Signals) -> None:
        self.step = step
        self.number = number

    def on_step_end(self, record: StepRecord) -> None:
        if record.step == self.step:
            signal.raise_signal(self.number)


def run(
    rank: int,
    world_size: int,
    config: RunConfig,
    stop_after: int | None = None,
    number: signal.Signals = signal.SIGTERM,
    watcher: Callback | None = None,
) -> ExitCode:
    """Train `config`; the last rank alone receives the signal `number` after `stop_after` steps,
    and has `watcher`."""
    environment = launch_environment()
    device = start_process(environment, environment.local_rank)
    with ExitStack() as stack:
        # Measuring the processor would take longer than the run.
        stack.enter_context(patch("roots.training.assemble.device_peak", return_value=PEAK))
        assembled = assemble(config, plan_batch(config, world_size), device, stack)
        if stop_after is not None:
            watcher = SignalAfter(stop_after, number)
        if watcher is not None and rank == world_size - 1:
            callbacks = CallbackList([*assembled.callbacks, watcher])
            assembled = replace(assembled, callbacks=callbacks)
        return train_loop(assembled)


def state_of(checkpoint: Path) -> dict[str, Any]:
    """Every tensor that is stored, whole, and every number, whatever layout wrote them."""
    found = read_manifest(checkpoint)
    files = [checkpoint / name for name in (*found.weights, *found.optimizer)]
    store = TensorStore(checkpoint, files)
    tensors = {
        name: torch.empty(stored.shape, dtype=stored.dtype)
        for name, stored in store.tensors.items()
    }
    store.fill(
        Piece(name, replicated(name, tensor.shape), 0, tensor.view(-1))
        for name, tensor in tensors.items()
    )
    numbers = {"step": found.step, "samples": found.consumed_samples, **(found.state or {})}
    return {**tensors, **numbers}


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Paths at which two states are not exactly equal."""
    assert first.keys() == second.keys()
    return [path for path, value in first.items() if not _equal(value, second[path])]


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    return bool(first == second)
