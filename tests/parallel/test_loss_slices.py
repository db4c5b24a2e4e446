"""The loss under sequence parallelism: slices of the tokens in, slices of their gradient out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from roots.parallel.mesh import Mesh
from roots.parallel.topology import Topology
from tests.helpers.distributed import run_distributed
from tests.parallel.test_loss import Case, Result, make_case, ours, plain


def _on_rank(rank: int, world_size: int, case: Case, chunk_tokens: int | None) -> Result:
    mesh = Mesh.create(Topology(tensor=world_size))
    mine = replace(case, x_BTH=case.x_BTH.chunk(world_size, dim=1)[rank])
    return ours(mesh, mine, chunk_tokens=chunk_tokens, sequence_dim=1)


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
