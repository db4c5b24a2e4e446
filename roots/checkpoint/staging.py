"""A copy in host memory of what a rank is about to write, so that training goes on meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from roots.checkpoint.boxes import Piece
from roots.checkpoint.tensor_file import Entry

# Every tensor starts at a multiple of it.
_ALIGNMENT = 64


def entries_of(pieces: Iterable[Piece]) -> Iterable[Entry]:
    """Every box of every piece, as it lies in memory."""
    for piece in pieces:
        for box, view in piece.boxes():
            yield Entry(piece.tensor, piece.shard.shape, box, view)


class Staging:
    """Memory of the host for one copy, kept from one save to the next: a page is touched once."""

    def __init__(self, pinned: bool = False) -> None:
        """Nothing is allocated yet. `pinned`: for copies from a GPU."""
        self._pinned = pinned
        self._memory = torch.empty(0, dtype=torch.uint8)

    @property
    def num_bytes(self) -> int:
        """What is allocated."""
        return self._memory.numel()

    def reserve(self, num_bytes: int) -> None:
        """Have room for so much; what was there is gone if there was less."""
        if num_bytes > self.num_bytes:
            # First the old memory goes, so that both are never there at once.
            self._memory = torch.empty(0, dtype=torch.uint8)
            self._memory = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self._pinned)

    def copy(self, pieces: Callable[[], Iterable[Piece]]) -> list[Entry]:
        """The entries of `pieces()` with copies of their values, good until the next call."""
        self.reserve(staged_bytes(pieces()))
        entries: list[Entry] = []
        position = 0
        for piece in pieces():
            copied = self._place(piece.data, position)
            copied.copy_(piece.data, non_blocking=self._pinned)
            position += aligned_bytes(piece.data)
            entries += entries_of([Piece(piece.tensor, piece.shard, piece.start, copied)])
        return entries

    def _place(self, data: Tensor, position: int) -> Tensor:
        count = data.numel() * data.element_size()
        return self._memory[position : position + count].view(data.dtype)


def staged_bytes(pieces: Iterable[Piece]) -> int:
    """What a copy of `pieces` takes."""
    return sum(aligned_bytes(piece.data) for piece in pieces)


def aligned_bytes(data: Tensor) -> int:
    """The room of one tensor in the copy."""
    count = data.numel() * data.element_size()
    return -(-count // _ALIGNMENT) * _ALIGNMENT
