"""The copy that a checkpoint is written from: what was there at the time, in memory that stays."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from roots.checkpoint.boxes import Piece
from roots.checkpoint.staging import Staging, aligned_bytes, entries_of, staged_bytes
from roots.parallel.mesh import Axis
from roots.parallel.shard import chunked, replicated


def pieces(values: float = 0.0) -> list[Piece]:
    axis = Axis("tensor", 2, 1, (0, 1))
    fused = chunked("x", (12, 3), 0, axis, [4, 8])
    count = 6 * 3
    return [
        Piece("x", fused, 1, torch.arange(count - 1.0) + values),
        Piece("y", replicated("y", (5,)), 2, torch.arange(3).to(torch.bfloat16)),
        Piece("z", replicated("z", ()), 0, torch.tensor([values])),
    ]


def test_copies_are_entries_of_what_was_there() -> None:
    """Training goes on in the tensors that were copied."""
    held = pieces()
    expected = [(each.tensor, each.box, each.data.clone()) for each in entries_of(held)]
    staging = Staging()
    staging.reserve(staged_bytes(held))
    entries = staging.copy(held)
    for piece in held:
        piece.data.fill_(9)
    assert [(each.tensor, each.box) for each in entries] == [each[:2] for each in expected]
    for entry, (_, _, data) in zip(entries, expected, strict=True):
        assert entry.data.dtype == data.dtype
        assert torch.equal(entry.data, data)


def test_memory_is_bounded_and_stays() -> None:
    """As much as the tensors, each from a multiple of 64 bytes on, at the same place each time."""
    staging = Staging()
    size = staged_bytes(pieces())
    staging.reserve(size, touch=True)
    assert size == sum(aligned_bytes(each.data) for each in pieces()) == 128 + 64 + 64
    places = set()
    for step in range(4):
        entries = staging.copy(pieces(float(step)))
        assert staging.num_bytes == size
        places.add(entries[0].data.untyped_storage().data_ptr())
        assert float(entries[-1].data) == step
    assert len(places) == 1
    staging.reserve(size - 1)
    assert staging.num_bytes == size
    staging.reserve(size + 1)
    assert staging.num_bytes == size + 1


def test_pieces_that_are_good_until_the_next_are_copied_in_time() -> None:
    """As those on NVMe, which are read back one group at a time into the same memory."""
    shared = torch.zeros(2)

    def one_after_the_other() -> Iterator[Piece]:
        for number in range(3):
            shared.fill_(number)
            yield Piece(f"x{number}", replicated(f"x{number}", (2,)), 0, shared)

    staging = Staging()
    staging.reserve(staged_bytes(one_after_the_other()))
    entries = staging.copy(one_after_the_other())
    assert [each.data.tolist() for each in entries] == [[0, 0], [1, 1], [2, 2]]
