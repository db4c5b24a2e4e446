"""Rows exchanged between ranks arrive in the order of their senders, and gradients go home."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from roots.parallel.all_to_all import exchange_counts, exchange_rows
from roots.parallel.mesh import Mesh
from roots.parallel.topology import Topology
from tests.helpers.distributed import run_distributed

# How many rows rank s sends to rank r: some none at all.
SENT = [[2, 0, 3], [1, 1, 0], [0, 4, 0]]


def _exchanged(rank: int, world_size: int) -> tuple[Tensor, ...]:
    axis = Mesh.create(Topology(data=world_size, expert=world_size)).expert
    received = exchange_counts(torch.tensor(SENT[rank]).unsqueeze(1), axis).squeeze(1)
    # Row 100 s + i is the i-th of rank s.
    rows = (100 * rank + torch.arange(float(sum(SENT[rank])))).unsqueeze(1).requires_grad_()
    arrived = exchange_rows(rows, SENT[rank], received.tolist(), axis)
    back = exchange_rows(arrived * (rank + 1), received.tolist(), SENT[rank], axis)
    (gradient,) = torch.autograd.grad(back.sum(), rows)
    return received, arrived.detach(), back.detach(), gradient


@pytest.mark.distributed
def test_rows_arrive_by_sender_and_their_gradients_return() -> None:
    for rank, (received, arrived, back, gradient) in enumerate(run_distributed(_exchanged, 3)):
        assert received.tolist() == [SENT[sender][rank] for sender in range(3)]
        expected = []
        for sender in range(3):
            first = sum(SENT[sender][:rank])
            expected += [100 * sender + first + i for i in range(SENT[sender][rank])]
        assert arrived.flatten().tolist() == expected
        factor = [receiver + 1 for receiver in range(3) for _ in range(SENT[rank][receiver])]
        rows = [100 * rank + i for i in range(len(factor))]
        assert back.flatten().tolist() == [a * b for a, b in zip(rows, factor, strict=True)]
        assert gradient.flatten().tolist() == factor


def test_exchange_with_nobody_is_the_identity() -> None:
    rows, axis = torch.ones(3, 2), Mesh.single().expert
    assert exchange_rows(rows, [3], [3], axis) is rows
    assert exchange_counts(rows, axis) is rows
