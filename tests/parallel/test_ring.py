"""Ring attention equals attention of one process: output, gradients, and what documents see.

Legend: B rows, T tokens of a rank, S of the sample, n query and k key heads, D head size.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from roots.ops import attention
from roots.parallel import ring
from roots.parallel.collectives import Pending, shift_async
from roots.parallel.mesh import Axis, Mesh
from roots.parallel.placement import Placement
from roots.parallel.process import all_gather_tensors
from roots.parallel.ring import ring_attention, ring_ranges
from roots.parallel.topology import Topology
from tests.helpers.distributed import run_distributed

LENGTH = 48
# dtype, window, whether documents are told apart, implementation
CASES = [
    (torch.float64, 0, True, "auto"),
    (torch.float64, 7, False, "auto"),
    (torch.float32, 0, True, "auto"),
    (torch.float32, 11, True, "reference"),
    (torch.bfloat16, 0, True, "auto"),
]
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2.0**-7}


def operands(dtype: torch.dtype) -> list[Tensor]:
    """q, k, v and do of two rows, four query and two key heads."""
    generator = torch.Generator().manual_seed(3)
    shapes = [(2, LENGTH, heads, 16) for heads in (4, 2, 2, 4)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def document_starts() -> Tensor:
    """One row of documents that begin within, at the end of, and across the parts of ranks."""
    starts = torch.zeros(2, LENGTH, dtype=torch.int64)
    for first in (5, 12, 13, 30):
        starts[0, first:] = first
    starts[1, 24:] = 24
    return starts


def on_one_process(
    dtype: torch.dtype, window: int, separate: bool, implementation: str
) -> list[Tensor]:
    q, k, v, do = operands(dtype)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    starts = document_starts() if separate else None
    o = attention(*leaves, window=window, document_starts_BT=starts, implementation=implementation)
    return [o.detach(), *torch.autograd.grad(o, leaves, do)]


def around(rank: int, world_size: int, cases: list[Any]) -> list[list[Tensor]]:
    """o, dq, dk and dv of the whole sample, put together from the ranks, for every case."""
    mesh = Mesh.create(Topology(context=world_size))
    place = Placement.on(mesh, sequence=False, zigzag=True)
    positions_T = place.positions(LENGTH, torch.device("cpu"))
    order_S = torch.cat(all_gather_tensors(mesh.context, positions_T)).argsort()
    sent = recorded_dtypes()
    found = []
    for dtype, window, separate, implementation in cases:
        sent.clear()
        *leaves, do = (place.take(x, 1) for x in operands(dtype))
        leaves = [x.requires_grad_() for x in leaves]
        ranges = ring_ranges(document_starts(), place, separate=separate, window=window)
        o = ring_attention(*leaves, ranges, mesh.context, implementation=implementation)
        mine = [o.detach(), *torch.autograd.grad(o, leaves, do)]
        # Gradients of keys and values go round once, and are summed on their way.
        assert dtype != torch.bfloat16 or sent.count(torch.float32) == world_size
        whole = [torch.cat(all_gather_tensors(mesh.context, x), 1)[:, order_S] for x in mine]
        found.append(whole)
    return found


def recorded_dtypes() -> list[torch.dtype]:
    """The dtypes of all that goes round from now on."""
    sent: list[torch.dtype] = []

    def shift(x: Tensor, axis: Axis) -> Pending:
        sent.append(x.dtype)
        return shift_async(x, axis)

    ring.shift_async = shift
    return sent


@pytest.mark.distributed
@pytest.mark.parametrize("size", [2, 4])
def test_ring_equals_one_process(size: int) -> None:
    wanted = [on_one_process(*case) for case in CASES]
    for per_case in run_distributed(around, size, CASES):
        for case, found, expected in zip(CASES, per_case, wanted, strict=True):
            for name, ours, theirs in zip(("o", "dq", "dk", "dv"), found, expected, strict=True):
                assert ours.dtype == theirs.dtype
                difference = (ours.double() - theirs.double()).abs().max()
                largest = theirs.double().abs().max()
                assert difference <= TOLERANCES[case[0]] * largest, (case, name, difference)
