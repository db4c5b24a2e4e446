"""The copy that a save beside training is written from."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from roots.checkpoint.boxes import Piece
from roots.checkpoint.staging import Staging, staged_bytes
from roots.parallel.shard import replicated


def pieces() -> Iterator[Piece]:
    for name, dtype in (("a", torch.float32), ("b", torch.bfloat16), ("c", torch.int64)):
        data = torch.arange(15).to(dtype)
        yield Piece(name, replicated(name, (3, 5)), 0, data)


def test_copy_stays_as_it_was_and_its_memory_is_kept() -> None:
    staging = Staging()
    needed = staged_bytes(pieces())
    staging.reserve(needed, touch=True)
    held = {piece.tensor: piece for piece in pieces()}
    places = set()
    for _ in range(2):
        entries = staging.copy(lambda: iter(held.values()))
        places.add(entries[0].data.data_ptr())
        before = {name: piece.data.clone() for name, piece in held.items()}
        for piece in held.values():
            piece.data.add_(1)
        for entry in entries:
            assert torch.equal(entry.data, before[entry.tensor].view(entry.box.sizes))
        assert staging.num_bytes == needed
    assert len(places) == 1
