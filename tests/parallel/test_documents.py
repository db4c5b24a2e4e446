"""Documents that are packed into one sample do not see each other, however the sample is cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from roots.parallel.mesh import Mesh
from roots.parallel.placement import Placement
from roots.parallel.topology import Topology
from tests.helpers.decoders import small_decoder, small_model
from tests.helpers.distributed import run_distributed

# Of 24 tokens every rank has some of the middle document, 4 to 16, and some of others, however they
# are cut: contiguously after 12, or in zigzag order, 0 to 6 with 18 to 24 and 6 to 18.
FIRST, STOP = 4, 16
METHODS = ("ulysses", "ring")


def logits_of_both(rank: int, world_size: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Per method: positions of this rank's tokens, logits before and after the middle changes."""
    mesh = Mesh.create(Topology(tensor=2, context=2))
    model = small_model(position="rotary", num_kv_heads=2)
    starts_BS = torch.zeros(1, 24, dtype=torch.int64)
    starts_BS[:, FIRST:], starts_BS[:, STOP:] = FIRST, STOP
    tokens_BS = torch.arange(24)[None] * 3 % model.vocab_size
    changed_BS = tokens_BS.clone()
    changed_BS[:, FIRST:STOP] += 1
    found = []
    for method in METHODS:
        place = Placement.on(mesh, sequence=True, zigzag=method == "ring")
        decoder = small_decoder(model, mesh, sequence_parallel=True, context_method=method).eval()
        logits = [
            decoder(place.take(tokens, 1), starts_BS, torch.zeros(1, dtype=torch.int64)).detach()
            for tokens in (tokens_BS, changed_BS)
        ]
        found.append((place.positions(24, tokens_BS.device), *logits))
    return found


@pytest.mark.distributed
def test_a_changed_document_leaves_the_logits_of_others_as_they_are() -> None:
    for found in run_distributed(logits_of_both, 4):
        for method, (positions_T, before, after) in zip(METHODS, found, strict=True):
            inside_T = (positions_T >= FIRST) & (positions_T < STOP)
            assert inside_T.any()
            assert not inside_T.all()
            assert torch.equal(before[:, ~inside_T], after[:, ~inside_T]), method
            assert not torch.equal(before[:, inside_T], after[:, inside_T])
