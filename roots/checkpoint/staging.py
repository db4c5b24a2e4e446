"""A copy in host memory of what a rank is about to write, so that training goes on meanwhile."""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from contextlib import suppress

import numpy
import torch
from numpy.typing import NDArray
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

    def reserve(self, num_bytes: int, *, touch: bool = False) -> None:
        """Have room for so much; what was there is gone if there was less.

        touch: make its pages now, which takes longer than a copy into pages that are there.
        """
        if num_bytes > self.num_bytes:
            # First the old memory goes, so that both are never there at once.
            self._memory = torch.empty(0, dtype=torch.uint8)
            self._memory = _pinned(num_bytes) if self._pinned else _in_large_pages(num_bytes)
            if touch:
                self._memory.zero_()

    def copy(self, pieces: Iterable[Piece]) -> list[Entry]:
        """The entries of `pieces` with copies of their values, good until the next call.

        Room for them has to be reserved. A piece need only be good until the next is asked for.
        """
        entries: list[Entry] = []
        position = 0
        for piece in pieces:
            copied = self._place(piece.data, position)
            if self._pinned:
                copied.copy_(piece.data, non_blocking=True)
            else:
                # On one core: torch would start threads of its own beside those that train.
                numpy.copyto(_bytes_of(copied), _bytes_of(piece.data))
            position += aligned_bytes(piece.data)
            entries += entries_of([Piece(piece.tensor, piece.shard, piece.start, copied)])
        return entries

    def _place(self, data: Tensor, position: int) -> Tensor:
        count = data.numel() * data.element_size()
        return self._memory[position : position + count].view(data.dtype)


def _bytes_of(data: Tensor) -> NDArray[numpy.uint8]:
    """The memory of a contiguous tensor of the host."""
    return data.reshape(-1).view(torch.uint8).numpy()


def _pinned(num_bytes: int) -> Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)


def _in_large_pages(num_bytes: int) -> Tensor:
    """Memory whose first touch, which a save waits for, takes few faults where the system can."""
    private = (
        {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    )
    memory = mmap.mmap(-1, num_bytes, **private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


def staged_bytes(pieces: Iterable[Piece]) -> int:
    """What a copy of `pieces` takes."""
    return sum(aligned_bytes(piece.data) for piece in pieces)


def aligned_bytes(data: Tensor) -> int:
    """The room of one tensor in the copy."""
    count = data.numel() * data.element_size()
    return -(-count // _ALIGNMENT) * _ALIGNMENT
