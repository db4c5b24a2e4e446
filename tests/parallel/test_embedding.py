"""The vocabulary-parallel embedding equals torch's on every degree."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from roots.errors import RootsError
from roots.parallel.embedding import VocabParallelEmbedding
from roots.parallel.mesh import Axis, Mesh
from roots.parallel.shard import gather_full, shard_of, slice_full
from roots.parallel.topology import Topology
from tests.helpers.distributed import run_distributed

ROWS, HIDDEN = 16, 5
# Every shard of 4 is looked up, some rows often, row 0 and the last ones never.
TOKENS = torch.tensor([[1, 5, 5, 9], [13, 13, 13, 2], [8, 7, 4, 3]])


def _values() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(ROWS, HIDDEN, generator=generator, dtype=torch.float64)
    return weight, torch.randn(3, 4, HIDDEN, generator=generator, dtype=torch.float64)


def _look_up(rank: int, world_size: int) -> tuple[Tensor, Tensor, int]:
    axis = Mesh.create(Topology(tensor=world_size)).tensor
    weight, upstream = _values()
    layer = VocabParallelEmbedding(ROWS, HIDDEN, name="tokens", axis=axis, dtype=torch.float64)
    layer.weight.data.copy_(slice_full(weight, shard_of(layer.weight)))
    x = layer(TOKENS)
    x.backward(upstream)
    assert layer.weight.grad is not None
    whole = gather_full(layer.weight.grad, shard_of(layer.weight), axis)
    return x.detach(), whole, len(layer.weight)


@pytest.mark.distributed
@pytest.mark.parametrize("size", [1, 2, 4])
def test_embedding_matches_unsharded(size: int) -> None:
    weight, upstream = _values()
    weight.requires_grad_()
    wanted = functional.embedding(TOKENS, weight)
    wanted.backward(upstream)
    for x, gradient, rows in run_distributed(_look_up, size):
        assert rows == ROWS // size
        # One rank adds a value, the others zeros: nothing is rounded.
        assert torch.equal(x, wanted.detach())
        torch.testing.assert_close(gradient, weight.grad)


def test_record_and_tie() -> None:
    axis = Axis("tensor", 4, 3, tuple(range(4)))
    layer = VocabParallelEmbedding(
        ROWS, HIDDEN, name="head", axis=axis, tied_to="embedding.tokens.weight", device="meta"
    )
    shard = shard_of(layer.weight)
    assert (shard.name, shard.intervals) == ("head.weight", ((12, 16),))
    assert shard.tied_to == "embedding.tokens.weight"


def test_a_vocabulary_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(RootsError) as error:
        VocabParallelEmbedding(
            ROWS, HIDDEN, name="embedding.tokens", axis=Axis("tensor", 3, 0, (0, 1, 2))
        )
    assert str(error.value) == (
        "embedding.tokens.weight=(16, 5): dimension 0 has parts of 16 to cut over 3 tensor ranks; "
        "make them divisible by 3 or change parallel.tensor"
    )
