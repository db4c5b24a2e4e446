"""What one rank of an integration test does: a whole run, stopped by a real signal if asked."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from roots.config import RunConfig
from roots.config.batch import plan_batch
from roots.device import launch_environment
from roots.errors import ExitCode
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
) -> ExitCode:
    """Train `config`; the last rank alone receives the signal `number` after `stop_after` steps."""
    environment = launch_environment()
    device = start_process(environment, environment.local_rank)
    with ExitStack() as stack:
        # Measuring the processor would take longer than the run.
        stack.enter_context(patch("roots.training.assemble.device_peak", return_value=PEAK))
        assembled = assemble(config, plan_batch(config, world_size), device, stack)
        if stop_after is not None and rank == world_size - 1:
            callbacks = CallbackList([*assembled.callbacks, SignalAfter(stop_after, number)])
            assembled = replace(assembled, callbacks=callbacks)
        return train_loop(assembled)


def state_of(checkpoint: Path) -> dict[str, Any]:
    """Every tensor and number that DeepSpeed and ROOTS stored, flattened to path -> value."""
    flat: dict[str, Any] = {}
    for path in sorted(checkpoint.rglob("*.pt")):
        tree = torch.load(path, map_location="cpu", weights_only=False)
        _flatten(tree, path.name, flat)
    return flat


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Paths at which two states are not exactly equal."""
    assert first.keys() == second.keys()
    return [path for path, value in first.items() if not _equal(value, second[path])]


def _flatten(value: Any, path: str, flat: dict[str, Any]) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _flatten(item, f"{path}/{key}", flat)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _flatten(item, f"{path}/{index}", flat)
    elif isinstance(value, (torch.Tensor, int, float, str, bool)) or value is None:
        flat[path] = value
    elif hasattr(value, "__dict__") and type(value).__module__.startswith("deepspeed"):
        _flatten(vars(value), path, flat)


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    return bool(first == second)
