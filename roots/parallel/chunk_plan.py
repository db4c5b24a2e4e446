"""Which parts of stored chunks make up wanted ones.

These are the parts that torch's distributed checkpoint plans, in the order of the stored chunks: a
test holds both against each other. What plans there comes with all of sharded tensors and symbolic
shapes, which costs every rank of a start 50 MB of memory and a second of processor time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
    plan: dict[int, list[Part]] = {}
    for target, chunk in enumerate(wanted):
        found = (_common(source, held, chunk) for source, held in enumerate(stored))
        if parts := [part for part in found if part is not None]:
            plan[target] = parts
    return plan


def _common(source: int, held: Chunk, wanted: Chunk) -> Part | None:
    """What two chunks have in common; None if that is nothing."""
    offsets, place, sizes = [], [], []
    for at, length, first, size in zip(*held, *wanted, strict=True):
        low, high = max(at, first), min(at + length, first + size)
        if low >= high:
            return None
        offsets.append(low - at)
        place.append(low - first)
        sizes.append(high - low)
    return Part(source, tuple(offsets), tuple(place), tuple(sizes))
