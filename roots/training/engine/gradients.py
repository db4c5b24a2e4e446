"""Global gradient norm and clipping that count every parameter exactly once."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from roots.parallel.mesh import Mesh
from roots.parallel.process import all_reduce_sum
from roots.parallel.shard import shard_of

EPSILON = 1e-6
# Of a larger one the square overflows float32, in which most of DeepSpeed's optimizers add squares.
LARGEST_NORM = torch.finfo(torch.float32).max ** 0.5


def global_gradient_norm(parameters: Iterable[torch.nn.Parameter], mesh: Mesh) -> Tensor:
    """Euclidean norm of the whole model's gradient, as a float32 scalar equal on every rank.

    A sharded parameter counts on every tensor rank, a replicated one on the first only, and the
    second copy of a weight tied between two stages (`ds_pipe_replicated`) not at all. Gradients
    must already be averaged over the replica axis. Communication: one all-reduce over the model
    axis.
    """
    parameters = list(parameters)
    squares = [
        _sum_of_squares(parameter.grad)
        for parameter in parameters
        if parameter.grad is not None and _counts_here(parameter, mesh)
    ]
    nothing = torch.zeros((), dtype=torch.float64, device=parameters[0].device)
    return all_reduce_sum(mesh.model, sum(squares, nothing)).sqrt().float()


def clip_gradients_(parameters: Iterable[torch.nn.Parameter], norm: Tensor, largest: float) -> None:
    """Scale every gradient in place so that the global norm is at most `largest` (0: leave it)."""
    if largest == 0:
        return
    factor = torch.clamp(largest / (norm + EPSILON), max=1.0)
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(factor.to(parameter.grad.dtype))


def _sum_of_squares(gradient: Tensor) -> Tensor:
    """In float64, from float32 norms of rows.

    torch's float32 norm of a whole tensor on a CPU keeps a few running sums, which are off by 5e-4
    at 12 million elements and by 1e-2 at 100 million; widening it first costs a copy of the tensor.
    """
    rows = torch.linalg.vector_norm(gradient, dim=-1, dtype=torch.float32)
    return rows.double().square().sum()


def _counts_here(parameter: torch.nn.Parameter, mesh: Mesh) -> bool:
    if getattr(parameter, "ds_pipe_replicated", False):
        return False
    return shard_of(parameter).dim is not None or mesh.tensor.rank == 0
