"""What one rank of a layout test does: roots.verify.curve, and what was warned of."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import torch
from torch import Tensor

from roots.config import RunConfig
from roots.log import get_logger
from roots.training.engine.step import Engine
from roots.verify.compare import Curve
from roots.verify.curve import Tamper
from roots.verify.curve import train_curve as train


@dataclass(frozen=True)
class LoggedCurve(Curve):
    """A curve with the warnings of the engine."""

    log: list[str] = field(default_factory=list)


def train_curve(
    rank: int,
    world_size: int,
    config: RunConfig,
    tamper: Tamper | None = None,
    tensors: bool = True,
) -> LoggedCurve:
    """Train `config` as rank `rank`, which run_distributed has made this process."""
    lines: list[str] = []
    handler = _log_of("training.engine", lines)
    curve = train(config, tamper=tamper, tensors=tensors)
    get_logger("training.engine").removeHandler(handler)
    return LoggedCurve(**vars(curve), log=lines)


def _log_of(name: str, lines: list[str]) -> logging.Handler:
    """Append the logger's warnings to `lines` too."""
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    get_logger(name).addHandler(handler)
    return handler


OVERFLOW_STEP = 3


def overflow_on_last_rank(engine: Engine, step: int) -> None:
    """Make one gradient of the last rank infinite in step OVERFLOW_STEP, and of no other rank."""
    if step == OVERFLOW_STEP:
        _overflow(engine)


def overflow_at_first(engine: Engine, step: int) -> None:
    """The same in the first step."""
    if step == 0:
        _overflow(engine)


def _overflow(engine: Engine) -> None:
    if engine.mesh.rank != engine.mesh.world.size - 1:
        return
    parameter = next(engine.module.parameters())

    def explode(gradient: Tensor) -> Tensor:
        handle.remove()
        return torch.full_like(gradient, torch.inf)

    handle = parameter.register_hook(explode)
