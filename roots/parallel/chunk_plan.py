"""Which parts of stored chunks make up wanted ones: the plan of torch's distributed checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

Numbers = tuple[int, ...]
Chunk = tuple[Numbers, Numbers]


@dataclass(frozen=True)
class Part:
    """What one stored chunk has of a wanted one.

    source: index of the stored chunk; offsets: of the part in it; place: of the part in the wanted
    chunk; sizes: the part's own.
    """

    source: int
    offsets: Numbers
    place: Numbers
    sizes: Numbers

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.sizes)


def plan_parts(stored: Sequence[Chunk], wanted: Sequence[Chunk]) -> dict[int, list[Part]]:
    """For every wanted chunk, by its index, the parts to read; chunks are (offsets, sizes).

    Empty chunks have no parts. All are of one tensor.
    """
    # Half a second of a start, which a run that loads nothing need not wait for.
    from torch.distributed.checkpoint import metadata
    from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

    def described(chunks: Sequence[Chunk]) -> list[metadata.ChunkStorageMetadata]:
        return [
            metadata.ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
            for offsets, sizes in chunks
        ]

    properties = metadata.TensorProperties()
    held = metadata.TensorStorageMetadata(properties, torch.Size(), described(stored))
    plan: dict[int, list[Part]] = {}
    for item in create_read_items_for_chunk_list("", held, described(wanted)):
        target, source = item.dest_index.index, item.storage_index.index
        assert target is not None
        assert source is not None
        part = Part(
            source, tuple(item.storage_offsets), tuple(item.dest_offsets), tuple(item.lengths)
        )
        plan.setdefault(target, []).append(part)
    return plan
