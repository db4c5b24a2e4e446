"""What one rank reports of a short training run: losses, norms, and every tensor of every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

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

# What DeepSpeed and roots.training.engine.gradients add to the norm before they compare it.
_CLIP_EPSILON = 1e-6

Tamper = Callable[[Engine, int], None]


def train_curve(config: RunConfig, *, tamper: Tamper | None = None, tensors: bool = True) -> Curve:
    """Train `config` from its first step to its last as this process's rank of the launch.

    `tamper(engine, step)` runs before each step, for tests that plant a fault. `tensors` records
    every step's gradients and weights, for which no step may be skipped.
    """
    environment = launch_environment()
    device = start_process(environment, environment.local_rank)
    plan = plan_batch(config, environment.world_size)
    process.initialise(environment, device)
    mesh = Mesh.create(topology_of(config, plan))
    data = build_data(config, plan, mesh.data.rank)
    engine = build_engine(config, plan, mesh, device)
    curve = Curve()
    before: dict[str, Tensor] = {}
    for step, (micro_batches, _) in enumerate(data.train.iterate(0)):
        if tamper is not None:
            tamper(engine, step)
        result = engine.train_step(micro_batches, _rate(config, step))
        curve.losses.append(result.loss)
        curve.norms.append(result.grad_norm)
        curve.scales.append(result.loss_scale)
        curve.skipped.append(result.skipped)
        curve.overflows.append(result.overflow)
        curve.loads.append(result.experts)
        if tensors:
            assert result.grad_norm is not None, f"step {step + 1} was skipped"
            curve.steps.append(list(_pieces(engine, before, result.grad_norm)))
    if data.valid is None:
        return curve
    losses = [engine.evaluate(batches) for batches in data.valid.batches(config.evaluation.steps)]
    return replace(curve, evaluation=sum(losses) / len(losses))


def _pieces(engine: Engine, before: dict[str, Tensor], norm: float) -> Iterator[Piece]:
    """Every parameter after a step; `before` has the first moments of the last step and is updated.

    A rank reads its whole moments before it reads weights, since ZeRO-3 gathers for either.
    """
    config = engine.config
    beta, largest = config.optimizer.beta1, config.training.gradient_clipping
    unclip = max(1.0, (norm + _CLIP_EPSILON) / largest) if largest > 0 else 1.0
    gradients = {}
    for shard, moment in engine.first_moments():
        now = moment.double().cpu()
        gradients[shard.name] = (now - beta * before.get(shard.name, 0.0)) / (1 - beta) * unclip
        before[shard.name] = now
    for shard, weight in engine.weights():
        gradient = gradients[shard.name].view(weight.shape).float()
        yield Piece(shard, weight.float().cpu().clone(), gradient)


def _rate(config: RunConfig, step: int) -> float:
    return learning_rate(
        config.schedule,
        config.optimizer.learning_rate,
        step,
        config.training.steps,
        config.tokens_per_step,
    )
