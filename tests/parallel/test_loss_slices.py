"""The loss under sequence parallelism: slices of the tokens in, slices of their gradient out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from roots.parallel.loss import linear_cross_entropy
from roots.parallel.mesh import Mesh
from roots.parallel.shard import even, gather_full, slice_full
from roots.parallel.topology import Topology
from tests.helpers.distributed import run_distributed
from tests.parallel.test_loss import HIDDEN, PADDED, VOCAB, Case, Result, make_case, plain


def _on_rank(rank: int, world_size: int, case: Case, chunk_tokens: int | None) -> Result:
    axis = Mesh.create(Topology(tensor=world_size)).tensor
    shard = even("head.weight", (PADDED, HIDDEN), 0, axis)
    x = case.x_BTH.chunk(world_size, dim=1)[rank].clone().requires_grad_()
    weight = slice_full(case.weight_VH, shard).requires_grad_()
    loss = linear_cross_entropy(
        x,
        weight,
        case.labels_BT,
        case.loss_weights_BT,
        axis=axis,
        vocab_size=VOCAB,
        sequence_dim=1,
        chunk_tokens=chunk_tokens,
    )
    loss.backward()
    assert x.grad is not None
    assert weight.grad is not None
    dweight = gather_full(weight.grad, shard, axis)
    return {"loss": loss.detach(), "dx": x.grad, "dweight": dweight}


@pytest.mark.parametrize("chunk_tokens", [None, 5])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_slices_of_tokens_give_slices_of_the_gradient(
    world_size: int, chunk_tokens: int | None
) -> None:
    whole = make_case()
    case = replace(
        whole,
        x_BTH=whole.x_BTH[:, :8].contiguous(),
        labels_BT=whole.labels_BT[:, :8].contiguous(),
        loss_weights_BT=whole.loss_weights_BT[:, :8].contiguous(),
    )
    expected = plain(case)
    ranks = run_distributed(_on_rank, world_size, case, chunk_tokens)
    torch.testing.assert_close(torch.cat([found["dx"] for found in ranks], 1), expected["dx"])
    for found in ranks:
        # The loss is fp32 whatever the logits are.
        torch.testing.assert_close(found["loss"].double(), expected["loss"], rtol=1e-6, atol=0)
        torch.testing.assert_close(found["dweight"], expected["dweight"])
