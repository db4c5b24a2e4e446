"""Whether this machine computes the same gradient twice: of one micro-batch, bit for bit.

Both gradients are taken outside of DeepSpeed, before a step: nothing is added to any gradient that
a step uses, no hook on gradients runs, and what routers have counted is forgotten when the step
begins. Needs memory for two gradients of this rank's weights. Ranks that share samples (tensor,
context and expert axes) exchange what they compute, so that a fault of one shows on all of them.
"""

from __future__ import annotations

import socket

import torch
from torch import Tensor

from roots.data.batch import Batch
from roots.errors import ExitCode, RootsError, problem
from roots.parallel.process import all_gather_object
from roots.parallel.shard import shard_of
from roots.training.engine.step import Engine
from roots.training.micro_batch import model_inputs


def check_replay(engine: Engine, batch: Batch, step: int) -> None:
    """Raise RootsError with exit code FAULTY where two gradients of `batch` differ; every rank must
    call.

    Communication: that of two forward and backward passes, and an all-gather of a name a rank.
    """
    first, second = _gradients(engine, batch), _gradients(engine, batch)
    names = [shard_of(each, name).name for name, each in engine.module.named_parameters()]
    mine = next(
        (name for name, a, b in zip(names, first, second, strict=True) if not _same(a, b)), None
    )
    world = engine.mesh.world
    found = all_gather_object(world, (mine, socket.gethostname()))
    wrong = [(rank, host, name) for rank, (name, host) in enumerate(found) if name is not None]
    if not wrong:
        return
    places = ", ".join(f"{rank} ({host})" for rank, host, _ in wrong)
    rule = f"computed the gradient of one micro-batch twice before step {step} and got two results"
    rule += f", first that of tensor {wrong[0][2]}"
    fix = "resume from a checkpoint before it, without these hosts"
    line = problem(f"rank {places}", None, rule, fix)
    raise RootsError(line, exit_code=ExitCode.FAULTY, speaks=world.rank == 0)


def _gradients(engine: Engine, batch: Batch) -> list[Tensor | None]:
    """This rank's gradient of every parameter, scaled as in a step."""
    batch = engine.receive(batch)
    engine.module.train()
    inputs = model_inputs(engine.config.model, batch)
    loss = engine.module(*inputs, batch.labels_BT, batch.loss_weights_BT) * engine.loss_scale
    return list(torch.autograd.grad(loss, list(engine.module.parameters()), allow_unused=True))


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    """Whether all bits are equal: of NaN too, and not of 0 and -0."""
    if first is None or second is None:
        return first is second
    return torch.equal(first.contiguous().view(torch.uint8), second.contiguous().view(torch.uint8))
