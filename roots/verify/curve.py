"""What one rank reports of a short training run: losses, norms, and every tensor of every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from roots.config.batch import plan_batch
from roots.config.run import RunConfig
from roots.data.build import build_data
from roots.device import launch_environment
from roots.parallel import process
from roots.parallel.mesh import Mesh
from roots.training.assemble import build_engine, start_process, topology_of
from roots.training.engine.step import Engine
from roots.training.schedule import learning_rate
from roots.verify.compare import Curve, Piece
from roots.verify.floors import Arithmetic

Tamper = Callable[[Engine, int], None]


def train_curve(config: RunConfig, *, tamper: Tamper | None = None, tensors: bool = True) -> Curve:
    """Train `config` from its first step to its last as this process's rank of the launch.

    `tamper(engine, step)` runs before each step, for tests that plant a fault. `tensors` records
    every step's gradients and weights.
    """
    environment = launch_environment()
    device = start_process(environment, environment.local_rank)
    plan = plan_batch(config, environment.world_size)
    process.initialise(environment, device)
    mesh = Mesh.create(topology_of(config, plan))
    data = build_data(config, plan, mesh.data.rank)
    engine = build_engine(config, plan, mesh, device)
    curve = Curve(arithmetic=Arithmetic.of(config))
    before: dict[str, Tensor] = {}
    for step, (micro_batches, _) in enumerate(data.train.iterate(0)):
        if tamper is not None:
            tamper(engine, step)
        rate = _rate(config, step)
        result = engine.train_step(micro_batches, rate)
        curve.losses.append(result.loss)
        curve.norms.append(result.grad_norm)
        curve.scales.append(result.loss_scale)
        curve.skipped.append(result.skipped)
        curve.overflows.append(result.overflow)
        curve.loads.append(result.experts)
        curve.rates.append(rate)
        groups = engine.deepspeed.optimizer.param_groups
        curve.groups.append(tuple((group["lr"], group["weight_decay"]) for group in groups))
        if tensors:
            curve.steps.append(list(_pieces(engine, before, result.grad_norm)))
    if data.valid is None:
        return curve
    losses = [engine.evaluate(batches) for batches in data.valid.batches(config.evaluation.steps)]
    return replace(curve, evaluation=sum(losses) / len(losses))


def _pieces(engine: Engine, before: dict[str, Tensor], norm: float | None) -> Iterator[Piece]:
    """Every parameter after a step; `before` has the first moments of the last step and is updated.

    A step that was skipped (`norm` is None) has changed no moment: its gradients count as zero.
    A rank reads its whole moments before it reads weights, since ZeRO-3 gathers for either.
    """
    gradients = {} if norm is None else _gradients(engine, before, norm)
    for shard, weight in engine.weights():
        found = gradients.get(shard.name)
        gradient = torch.zeros(weight.shape) if found is None else found.view(weight.shape).float()
        yield Piece(shard, weight.float().cpu().clone(), gradient)


def _gradients(engine: Engine, before: dict[str, Tensor], norm: float) -> dict[str, Tensor]:
    """The gradients of the step just applied, before clipping, by name; `before` is updated."""
    beta, clip = engine.config.optimizer.beta1, Arithmetic.of(engine.config).clip(norm)
    gradients = {}
    for shard, moment in engine.first_moments():
        now = moment.double().cpu()
        gradients[shard.name] = (now - beta * before.get(shard.name, 0.0)) / (1 - beta) / clip
        before[shard.name] = now
    return gradients


def _rate(config: RunConfig, step: int) -> float:
    return learning_rate(
        config.schedule,
        config.optimizer.learning_rate,
        step,
        config.training.steps,
        config.tokens_per_step,
    )
