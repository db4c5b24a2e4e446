"""Where the elements that a rank holds lie in the global tensor: boxes, whatever the layout.

A rank holds a range of the flattened local tensor: all of it, or what a stage of ZeRO leaves to it.
A range of a row-major tensor is a few boxes, and so is, cut at the intervals of its Shard record,
its place in the global tensor. Nothing here communicates, and no rank asks for another's boxes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from roots.parallel.shard import Shard

Numbers = tuple[int, ...]


@dataclass(frozen=True)
class Box:
    """The elements `offsets[i] <= index[i] < offsets[i] + sizes[i]` of a global tensor."""

    offsets: Numbers
    sizes: Numbers

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.sizes)


@dataclass(frozen=True)
class Piece:
    """A range of one local tensor that this rank holds.

    tensor: key of the global tensor in the checkpoint
    shard:  where the local tensor lies in the global one
    start:  the first element of the range in the flattened local tensor
    data:   the elements, [length]; they are written from it, and read into it
    """

    tensor: str
    shard: Shard
    start: int
    data: Tensor

    def boxes(self) -> Iterator[tuple[Box, Tensor]]:
        """The boxes of the global tensor that the range covers, each with its view of `data`."""
        for box, position in ranges(self.shard.local_shape, self.start, self.data.numel()):
            view = self.data.narrow(0, position, box.count).view(box.sizes)
            yield from _cut_at_intervals(box, view, self.shard)


def ranges(shape: Numbers, start: int, length: int) -> Iterator[tuple[Box, int]]:
    """The boxes that elements [start, start + length) of a row-major tensor of `shape` make up.

    Each comes with the position of its first element in the range; its elements follow one another
    there. At most two boxes a dimension, and one that has whole rows.
    """
    if length == 0:
        return
    if not shape:
        yield Box((), ()), 0
        return
    row = math.prod(shape[1:])
    stop = start + length
    first, last = -(-start // row), stop // row
    if first > last:
        # Within one row, of which it touches neither end.
        yield from _within(shape, first - 1, start, length, 0)
        return
    head = min(first * row, stop) - start
    if head:
        yield from _within(shape, first - 1, start, head, 0)
    if first < last:
        rest = shape[1:]
        yield Box((first, *(0 for _ in rest)), (last - first, *rest)), head
    tail = stop - last * row
    if tail:
        yield from _within(shape, last, last * row, tail, length - tail)


def _within(
    shape: Numbers, index: int, start: int, length: int, position: int
) -> Iterator[tuple[Box, int]]:
    """Boxes of a range inside of row `index`, the first of it being at `position`."""
    row = math.prod(shape[1:])
    for box, place in ranges(shape[1:], start - index * row, length):
        yield Box((index, *box.offsets), (1, *box.sizes)), position + place


def _cut_at_intervals(box: Box, view: Tensor, shard: Shard) -> Iterator[tuple[Box, Tensor]]:
    """`box` of the local tensor as boxes of the global one."""
    dim = shard.dim
    if dim is None:
        yield box, view
        return
    begin, end, local = box.offsets[dim], box.offsets[dim] + box.sizes[dim], 0
    for first, last in _joined(shard.intervals):
        low, high = max(begin, local), min(end, local + last - first)
        if low < high:
            offsets = _with(box.offsets, dim, first + low - local)
            sizes = _with(box.sizes, dim, high - low)
            yield Box(offsets, sizes), view.narrow(dim, low - begin, high - low)
        local += last - first


def _joined(intervals: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Intervals that follow one another as one: all of a fused parameter where it is not cut."""
    joined: list[tuple[int, int]] = []
    for start, stop in intervals:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined


def _with(numbers: Numbers, dim: int, value: int) -> Numbers:
    return (*numbers[:dim], value, *numbers[dim + 1 :])
