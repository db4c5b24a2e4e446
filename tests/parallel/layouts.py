"""What one rank of a layout test does: train some steps and report losses, norms and weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from torch import Tensor

from roots.config import RunConfig
from roots.data.build import build_data
from roots.device import launch_environment
from roots.log import get_logger
from roots.parallel.mesh import Mesh
from roots.parallel.process import all_gather_object
from roots.parallel.shard import Shard
from roots.training.assemble import build_engine, start_process, topology_of
from roots.training.engine import Engine
from roots.training.schedule import learning_rate


@dataclass(frozen=True)
class Curve:
    """What a layout produced: per step, and the final parameters by global name."""

    losses: list[float] = field(default_factory=list)
    norms: list[float | None] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)
    skipped: list[bool] = field(default_factory=list)
    overflows: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)
    evaluation: float = 0.0


Tamper = Callable[[Engine, int], None]


def train_curve(
    rank: int, world_size: int, config: RunConfig, tamper: Tamper | None = None
) -> Curve:
    """Train `config` as rank `rank`; every rank returns the same whole weights.

    `tamper(engine, step)` runs before each step, for tests that provoke an overflow.
    """
    environment = launch_environment()
    device = start_process(environment, environment.local_rank)
    plan = config.plan_batch(world_size)
    mesh = Mesh.create(topology_of(config, plan))
    data = build_data(config, plan, mesh.data.rank)
    partition_small_parameters_too()
    engine = build_engine(config, plan, mesh, device)
    assert not any(getattr(each, "ds_persist", False) for each in engine.module.parameters())
    curve = Curve()
    lines = _log_of("training.engine", curve.log)
    for step, (micro_batches, _) in enumerate(data.train.iterate(0)):
        if tamper is not None:
            tamper(engine, step)
        rate = learning_rate(
            config.schedule,
            config.optimizer.learning_rate,
            step,
            config.training.steps,
            config.tokens_per_step,
        )
        result = engine.train_step(micro_batches, rate)
        curve.losses.append(result.loss)
        curve.norms.append(result.grad_norm)
        curve.scales.append(result.loss_scale)
        curve.skipped.append(result.skipped)
        curve.overflows.append(result.overflow)
    get_logger("training.engine").removeHandler(lines)
    assert data.valid is not None
    losses = [engine.evaluate(batches) for batches in data.valid.batches(2)]
    parts = all_gather_object(mesh.model, [(s, t.clone()) for s, t in engine.weights()])
    weights = _join(entry for part in parts for entry in part)
    return replace(curve, weights=weights, evaluation=sum(losses) / len(losses))


def _log_of(name: str, lines: list[str]) -> logging.Handler:
    """Append the logger's warnings to `lines` too."""
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    get_logger(name).addHandler(handler)
    return handler


def partition_small_parameters_too() -> None:
    """ZeRO-3 keeps parameters below 100,000 elements whole, here all of them, and would not be
    tested: neither what gathers a parameter for its module nor one that another module uses."""
    DeepSpeedZeroConfig.model_fields["param_persistence_threshold"].default = 0
    DeepSpeedZeroConfig.model_rebuild(force=True)


def _join(entries: Any) -> dict[str, Tensor]:
    """Put the shards of every tensor together by their records."""
    full: dict[str, Tensor] = {}
    for shard, tensor in entries:
        whole = full.setdefault(shard.tied_to or shard.name, torch.full(shard.shape, torch.nan))
        _place(whole, shard, tensor.float())
    return full


def _place(whole: Tensor, shard: Shard, tensor: Tensor) -> None:
    if shard.dim is None:
        whole.copy_(tensor)
        return
    offset = 0
    for start, stop in shard.intervals:
        length = stop - start
        whole.narrow(shard.dim, start, length).copy_(tensor.narrow(shard.dim, offset, length))
        offset += length


def largest_difference(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Largest relative difference ||a - b|| / ||b|| of any parameter tensor."""
    assert first.keys() == second.keys()
    assert all(bool(tensor.isfinite().all()) for tensor in first.values())
    return max(
        float((first[name] - tensor).norm() / tensor.norm())
        for name, tensor in second.items()
        if tensor.norm() > 0
    )


OVERFLOW_STEP = 3


def overflow_on_last_rank(engine: Engine, step: int) -> None:
    """Make one gradient of the last rank infinite in step OVERFLOW_STEP, and of no other rank."""
    if step != OVERFLOW_STEP or engine.mesh.rank != engine.mesh.world.size - 1:
        return
    parameter = next(engine.module.parameters())

    def explode(gradient: Tensor) -> Tensor:
        handle.remove()
        return torch.full_like(gradient, torch.inf)

    handle = parameter.register_hook(explode)
