"""Conjugate pairs: forward values, gradients against one process, and inputs left untouched."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from roots.errors import RootsError
from roots.parallel.collectives import (
    all_gather_async,
    copy_to,
    exchange,
    gather_from,
    gather_to,
    reduce_from,
    reduce_scatter_async,
    scatter_sum,
    shift_async,
    split_to,
)
from roots.parallel.mesh import Axis, Mesh
from roots.parallel.topology import Topology
from tests.helpers.distributed import run_distributed

PAIRS: dict[str, Callable[[Tensor, Axis], Tensor]] = {
    "copy_to": copy_to,
    "reduce_from": reduce_from,
    "gather_from": lambda x, axis: gather_from(x, axis, 1),
    "split_to": lambda x, axis: split_to(x, axis, -1),
    "gather_to": lambda x, axis: gather_to(x, axis, 1),
    "scatter_sum": lambda x, axis: scatter_sum(x, axis, 1),
    "exchange": lambda x, axis: exchange(x, axis, 1, 0),
}


@pytest.mark.parametrize("name", PAIRS)
def test_at_size_one_a_collective_is_the_identity(name: str) -> None:
    x = torch.randn(2, 3)
    assert PAIRS[name](x, Mesh.single().tensor) is x


def _input_of(rank: int) -> Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)


def _apply(rank: int, world_size: int, name: str) -> tuple[Tensor, Tensor, bool]:
    axis = Mesh.create(Topology(tensor=world_size)).tensor
    # A non-contiguous leaf, to be told apart from a buffer that may be overwritten.
    x = _input_of(rank).t().contiguous().t().requires_grad_()
    before = x.detach().clone()
    y = PAIRS[name](x, axis)
    upstream = torch.arange(y.numel(), dtype=y.dtype).view(y.shape) + 100 * rank
    untouched = upstream.clone()
    y.backward(upstream)
    same = torch.equal(before, x.detach()) and torch.equal(untouched, upstream)
    assert x.grad is not None
    return y.detach(), x.grad, same


@pytest.mark.distributed
@pytest.mark.parametrize("size", [2, 4])
def test_values_and_gradients_of_all_pairs(size: int) -> None:
    inputs = [_input_of(rank) for rank in range(size)]
    up = torch.arange(12, dtype=torch.float64).view(3, 4)
    wide = torch.arange(12 * size, dtype=torch.float64).view(3, 4 * size)
    narrow = torch.arange(12 // size, dtype=torch.float64).view(3, 4 // size)
    ranks = range(size)
    share = 4 // size
    summed_up = sum(up + 100 * rank for rank in ranks)
    summed_wide = sum(wide + 100 * rank for rank in ranks)
    tall = torch.arange(12, dtype=torch.float64).view(3 * size, share)
    expected = {
        "copy_to": [(inputs[rank], summed_up) for rank in ranks],
        "reduce_from": [(sum(inputs), up + 100 * rank) for rank in ranks],
        "gather_from": [
            (torch.cat(inputs, 1), wide[:, 4 * rank : 4 * rank + 4] + 100 * rank) for rank in ranks
        ],
        "split_to": [
            (
                inputs[rank][:, share * rank : share * (rank + 1)],
                torch.cat([narrow + 100 * other for other in ranks], 1),
            )
            for rank in ranks
        ],
        "gather_to": [
            (torch.cat(inputs, 1), summed_wide[:, 4 * rank : 4 * rank + 4]) for rank in ranks
        ],
        "scatter_sum": [
            (
                sum(inputs)[:, share * rank : share * (rank + 1)],
                torch.cat([narrow + 100 * other for other in ranks], 1),
            )
            for rank in ranks
        ],
        # Rank r gets columns r of everyone, one above the other; backward brings rows home.
        "exchange": [
            (
                torch.cat([x[:, share * rank : share * (rank + 1)] for x in inputs]),
                torch.cat([tall[3 * rank : 3 * rank + 3] + 100 * other for other in ranks], 1),
            )
            for rank in ranks
        ],
    }
    for name, per_rank in expected.items():
        found = run_distributed(_apply, size, name)
        for (y, gradient, same), (wanted_y, wanted_gradient) in zip(found, per_rank, strict=True):
            torch.testing.assert_close(y, wanted_y, msg=name)
            torch.testing.assert_close(gradient, wanted_gradient, msg=name)
            assert same, f"{name} wrote into its input"


def _split_uneven(rank: int, world_size: int) -> str:
    axis = Mesh.create(Topology(tensor=world_size)).tensor
    with pytest.raises(RootsError) as error:
        split_to(torch.zeros(2, 5), axis, 1)
    return str(error.value)


@pytest.mark.distributed
def test_an_uneven_split_is_refused() -> None:
    assert run_distributed(_split_uneven, 2)[1] == (
        "a tensor of shape (2, 5): dimension 1 is split over 2 ranks of the tensor axis; "
        "make 5 divisible by 2"
    )


def _pending(rank: int, world_size: int, dtype: torch.dtype) -> list[Tensor]:
    """What is started asynchronously, of views that are not contiguous, all waited for late."""
    axis = Mesh.create(Topology(tensor=world_size)).tensor
    x = (torch.arange(8.0).view(4, 2) + 10 * rank).to(dtype).t()
    started = [
        all_gather_async(x, axis, 1),
        reduce_scatter_async(x, axis, 1),
        shift_async(x, axis),
    ]
    return [each.wait() for each in started]


@pytest.mark.distributed
@pytest.mark.parametrize("size", [2, 4])
def test_collectives_under_way(size: int) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        inputs = [(torch.arange(8.0).view(4, 2) + 10 * r).to(dtype).t() for r in range(size)]
        for rank, (gathered, scattered, shifted) in enumerate(
            run_distributed(_pending, size, dtype)
        ):
            assert torch.equal(gathered, torch.cat(inputs, 1))
            assert torch.equal(scattered, sum(inputs).chunk(size, 1)[rank])
            assert torch.equal(shifted, inputs[rank - 1])
