"""Recompute changes what is kept, never a number."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from roots.parallel.linear import ColumnParallelLinear, RowParallelLinear
from roots.parallel.mesh import Mesh
from roots.parallel.recompute import recompute
from roots.parallel.topology import Topology
from tests.helpers.distributed import run_distributed

HIDDEN = 8


class _Block(nn.Module):
    """Two parallel layers that use token ids as well, and count how often they run."""

    def __init__(self, mesh: Mesh) -> None:
        super().__init__()
        sizes = {"axis": mesh.tensor, "bias": False, "dtype": torch.float64}
        self.up = ColumnParallelLinear(HIDDEN, 4 * HIDDEN, name="up", **sizes)
        self.down = RowParallelLinear(4 * HIDDEN, HIDDEN, name="down", **sizes)
        self.runs = 0
        for parameter in self.parameters():
            generator = torch.Generator().manual_seed(parameter.numel() + mesh.tensor.rank)
            parameter.data.normal_(generator=generator)

    def forward(self, x: Tensor, tokens: Tensor, absent: Tensor | None) -> tuple[Tensor, Tensor]:
        assert absent is None
        self.runs += 1
        x = x + tokens.unsqueeze(-1)
        return x + self.down(torch.tanh(self.up(x))), tokens


def _run(mesh: Mesh, again: bool) -> tuple[list[Tensor], int]:
    block = _Block(mesh)
    x = torch.linspace(-1, 1, 3 * HIDDEN, dtype=torch.float64).view(3, HIDDEN).requires_grad_()
    tokens = torch.tensor([2, 0, 1])
    y, passed = recompute(block, x, tokens, None) if again else block(x, tokens, None)
    assert torch.equal(passed, tokens)
    y.pow(2).sum().backward()
    gradients = [leaf.grad for leaf in (x, *block.parameters()) if leaf.grad is not None]
    assert len(gradients) == 3
    return [y.detach(), *gradients], block.runs


def _compare(rank: int, world_size: int) -> tuple[bool, int, int]:
    mesh = Mesh.create(Topology(tensor=world_size))
    plain, once = _run(mesh, again=False)
    recomputed, twice = _run(mesh, again=True)
    equal = all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))
    return equal, once, twice


@pytest.mark.distributed
@pytest.mark.parametrize("size", [1, 2])
def test_values_and_gradients_are_bit_equal_and_the_block_runs_twice(size: int) -> None:
    assert run_distributed(_compare, size) == [(True, 1, 2)] * size


def test_activations_inside_are_not_kept() -> None:
    block = _Block(Mesh.single())
    kept: list[int] = []
    x = torch.ones(5, HIDDEN, dtype=torch.float64, requires_grad=True)

    def count(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        recompute(block, x, torch.zeros(5, dtype=torch.int64), None)
    # The wide activation of 5 x 32 would be among them.
    assert max(kept, default=0) <= x.numel()


def test_without_gradients_nothing_is_run_again() -> None:
    block = _Block(Mesh.single())
    with torch.no_grad():
        y, _ = recompute(block, torch.ones(1, HIDDEN, dtype=torch.float64), torch.tensor([1]), None)
    assert not y.requires_grad
    assert block.runs == 1
