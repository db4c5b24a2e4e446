"""Ulysses attention equals attention of one process, dropout and few key heads included.

Legend: B rows, T tokens of a rank, S of the sample, n query and k key heads, D head size.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from roots.ops import AttentionDropout, attention
from roots.parallel.mesh import Mesh
from roots.parallel.placement import Placement
from roots.parallel.process import all_gather_tensors
from roots.parallel.topology import Topology
from roots.parallel.ulysses import ulysses_attention
from tests.helpers.distributed import run_distributed
from tests.parallel.test_ring import LENGTH, document_starts

HEADS = 12
# Key heads: as many as query heads, a multiple of the ranks, fewer than they, and neither.
KEY_HEADS = [12, 4, 1, 3]


def operands(key_heads: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    shapes = [(2, LENGTH, heads, 8) for heads in (HEADS, key_heads, key_heads, HEADS)]
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


def dropout(first_head: int) -> AttentionDropout:
    return AttentionDropout(0.3, torch.tensor([11, 12]), "site", first_head)


def on_one_process(key_heads: int) -> list[Tensor]:
    *leaves, do = operands(key_heads)
    leaves = [x.requires_grad_() for x in leaves]
    o = attention(*leaves, document_starts_BT=document_starts(), dropout=dropout(0))
    return [o.detach(), *torch.autograd.grad(o, leaves, do)]


def exchanged(rank: int, world_size: int, key_heads: list[int]) -> list[list[Tensor]]:
    """o, dq, dk and dv of the whole sample, put together from the ranks."""
    mesh = Mesh.create(Topology(context=world_size))
    place = Placement.on(mesh, sequence=False, zigzag=False)

    def attend(*qkv: Tensor) -> Tensor:
        drop = dropout(rank * HEADS // world_size)
        result: Any = attention(*qkv, document_starts_BT=document_starts(), dropout=drop)
        return result

    found = []
    for number in key_heads:
        *leaves, do = (place.take(x, 1).clone() for x in operands(number))
        leaves = [x.requires_grad_() for x in leaves]
        o = ulysses_attention(*leaves, mesh.context, attend)
        mine = [o.detach(), *torch.autograd.grad(o, leaves, do)]
        found.append([torch.cat(all_gather_tensors(mesh.context, x), 1) for x in mine])
    return found


@pytest.mark.distributed
@pytest.mark.parametrize("size", [2, 4])
def test_ulysses_equals_one_process(size: int) -> None:
    wanted = [on_one_process(number) for number in KEY_HEADS]
    for per_case in run_distributed(exchanged, size, KEY_HEADS):
        for number, found, expected in zip(KEY_HEADS, per_case, wanted, strict=True):
            for name, ours, theirs in zip(("o", "dq", "dk", "dv"), found, expected, strict=True):
                torch.testing.assert_close(
                    ours, theirs, rtol=1e-12, atol=1e-12, msg=f"{name} of {number} key heads"
                )
