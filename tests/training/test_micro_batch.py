"""The parts of a micro-batch that context ranks take make up the whole, and so do their losses."""

from __future__ import annotations

import pytest
import torch

from roots.data.batch import Batch
from roots.parallel.mesh import Axis, Mesh
from roots.parallel.placement import Placement
from roots.training.micro_batch import share_of


def batch() -> Batch:
    tokens = torch.arange(16).view(2, 8)
    weights = torch.rand(2, 8, generator=torch.Generator().manual_seed(1))
    zeros = torch.zeros(2, 8, dtype=torch.int64)
    keys = tokens[:, 0]
    return Batch(tokens, tokens + 1, weights, zeros, keys, zeros[:, :0], zeros[:, 0])


@pytest.mark.parametrize("zigzag", [False, True])
def test_shares_make_up_the_batch(zigzag: bool) -> None:
    whole, single = batch(), Mesh.single().tensor
    shares = [
        share_of(whole, Placement(single, Axis("context", 2, rank, (0, 1)), zigzag=zigzag))
        for rank in range(2)
    ]
    for share in shares:
        assert torch.equal(share.document_starts_BT, whole.document_starts_BT)
        assert torch.equal(share.dropout_keys_B, whole.dropout_keys_B)
        assert torch.equal(share.labels_BT, share.tokens_BT + 1)
    tokens = torch.cat([share.tokens_BT for share in shares], 1)
    assert torch.equal(tokens.sort(1).values, whole.tokens_BT)
    expected = [0, 1, 6, 7] if zigzag else [0, 1, 2, 3]
    assert shares[0].tokens_BT[0].tolist() == expected
    # The mean over the replica axis of the ranks' losses is the loss of the samples.
    sums = torch.stack([share.loss_weights_BT.sum(1) for share in shares])
    torch.testing.assert_close(sums.mean(0), whole.loss_weights_BT.sum(1))


def test_a_lone_rank_takes_the_batch_as_it_is() -> None:
    whole = batch()
    place = Placement.on(Mesh.single(), sequence=False, zigzag=False)
    assert share_of(whole, place) is whole
