"""A range of a flattened tensor is a few boxes of the global one, each element in exactly one."""

from __future__ import annotations

import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roots.checkpoint.boxes import Box, Piece, ranges
from roots.checkpoint.staging import entries_of
from roots.parallel.mesh import Axis
from roots.parallel.shard import Shard, chunked, even, replicated, slice_full

# At 512 ranks, of a model whose tensors a rank of ZeRO has slices of.
PLANNING_SECONDS = 1.0

shapes = st.lists(st.integers(1, 5), max_size=4).map(tuple)


def within(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[int, int]:
    """Start and length of a range of a tensor of `shape`."""
    count = math.prod(shape)
    start = draw(st.integers(0, count))
    return start, draw(st.integers(0, count - start))


@st.composite
def shape_and_range(draw: st.DrawFn) -> tuple[tuple[int, ...], int, int]:
    shape = draw(shapes)
    return (shape, *within(draw, shape))


def inside(box: Box, full: Tensor) -> Tensor:
    for dim, (offset, size) in enumerate(zip(box.offsets, box.sizes, strict=True)):
        full = full.narrow(dim, offset, size)
    return full


@given(shape_and_range())
@settings(max_examples=300)
def test_boxes_of_a_range_are_its_elements_in_order(
    case: tuple[tuple[int, ...], int, int],
) -> None:
    shape, start, length = case
    numbered = torch.arange(math.prod(shape)).view(shape)
    place = 0
    found = list(ranges(shape, start, length))
    for box, position in found:
        assert position == place, "boxes follow one another in the range"
        place += box.count
        expected = torch.arange(start + position, start + position + box.count)
        assert torch.equal(inside(box, numbered).reshape(-1), expected)
    assert place == length
    assert len(found) <= max(1, 2 * len(shape) - 1)


@st.composite
def shards(draw: st.DrawFn) -> Shard:
    """A tensor as a rank of one, two or three holds it: whole, cut, or cut in fused parts."""
    size = draw(st.integers(1, 3))
    axis = Axis("tensor", size, draw(st.integers(0, size - 1)), tuple(range(size)))
    rest = draw(st.lists(st.integers(1, 4), min_size=0, max_size=2))
    dim = draw(st.integers(0, len(rest)))
    parts = [size * each for each in draw(st.lists(st.integers(1, 2), min_size=1, max_size=3))]
    shape = (*rest[:dim], sum(parts), *rest[dim:])
    if draw(st.booleans()):
        return replicated("tensor", shape)
    return chunked("tensor", shape, dim, axis, parts)


@given(st.data())
@settings(max_examples=300)
def test_boxes_of_a_piece_lie_where_its_elements_are_in_the_global_tensor(
    data: st.DataObject,
) -> None:
    shard = data.draw(shards())
    start, length = within(data.draw, shard.local_shape)
    whole = torch.arange(math.prod(shard.shape)).view(shard.shape)
    local = slice_full(whole, shard).reshape(-1)
    piece = Piece("tensor", shard, start, local[start : start + length].clone())
    seen: list[int] = []
    for box, view in piece.boxes():
        assert view.shape == torch.Size(box.sizes)
        assert torch.equal(view, inside(box, whole))
        assert view.untyped_storage().data_ptr() == piece.data.untyped_storage().data_ptr()
        seen += view.reshape(-1).tolist()
    assert sorted(seen) == sorted(piece.data.tolist())


def test_fused_parameter_that_is_not_cut_is_one_box() -> None:
    shard = chunked("tensor", (12, 2), 0, Axis("tensor", 1, 0, (0,)), [4, 4, 4])
    piece = Piece("tensor", shard, 0, torch.empty(24))
    assert [box for box, _ in piece.boxes()] == [Box((0, 0), (12, 2))]


@given(st.data())
@settings(max_examples=100)
def test_ranges_of_all_ranks_cover_every_element_once(data: st.DataObject) -> None:
    """Fused parts on tensor ranks, the flattened parts of which ZeRO cuts anywhere."""
    size, replicas = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))
    parts = [size * each for each in data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))]
    shape = (sum(parts), data.draw(st.integers(1, 4)))
    counts = torch.zeros(shape, dtype=torch.int64)
    for rank in range(size):
        axis = Axis("tensor", size, rank, tuple(range(size)))
        shard = chunked("tensor", shape, 0, axis, parts)
        count = math.prod(shard.local_shape)
        cuts = sorted(data.draw(st.integers(0, count)) for _ in range(replicas - 1))
        for start, stop in zip([0, *cuts], [*cuts, count], strict=True):
            piece = Piece("tensor", shard, start, torch.empty(stop - start))
            for box, _ in piece.boxes():
                inside(box, counts).add_(1)
    assert counts.unique().tolist() == [1]


def entries_of_rank(ranks: int) -> tuple[int, int, float]:
    """Boxes, tensors and seconds of what a rank in the middle of so many writes.

    Of a model of 96 blocks, 12,288 wide, on 8 tensor ranks, over whose replicas ZeRO has cut one
    flat tensor evenly. Without memory: the data of a piece are of one element, expanded.
    """
    started = time.perf_counter()
    axis = Axis("tensor", 8, 3, tuple(range(8)))
    width, blocks = 12_288, 96
    held = [
        shard
        for block in range(blocks)
        for shard in (
            chunked(f"layers.{block}.qkv", (3 * width, width), 0, axis, [width] * 3),
            even(f"layers.{block}.output", (width, width), 1, axis),
            chunked(f"layers.{block}.up", (8 * width, width), 0, axis, [4 * width] * 2),
            even(f"layers.{block}.down", (width, 4 * width), 1, axis),
            replicated(f"layers.{block}.norm", (width,)),
        )
    ]
    replicas = ranks // 8
    total = sum(math.prod(shard.local_shape) for shard in held)
    mine = replicas // 2
    begin, end = total * mine // replicas, total * (mine + 1) // replicas
    tensors = boxes = position = 0
    for shard in held:
        count = math.prod(shard.local_shape)
        start, stop = max(begin, position), min(end, position + count)
        if start < stop:
            piece = Piece(shard.name, shard, start - position, _Range(stop - start))
            tensors += 1
            boxes += len(list(entries_of([piece])))
        position += count
    return boxes, tensors, time.perf_counter() - started


class _Range(Tensor):
    """A flat tensor of any length that takes no memory."""

    @staticmethod
    def __new__(cls, length: int) -> _Range:
        return torch.empty(length, device="meta").as_subclass(cls)


@pytest.mark.parametrize("ranks", [8, 64, 512])
def test_plan_of_a_rank_grows_with_its_own_tensors_alone(ranks: int) -> None:
    """It knows of no other rank: three fused parts and five boxes of a range are the most."""
    boxes, tensors, seconds = entries_of_rank(ranks)
    assert tensors <= -(-96 * 5 * 8 // ranks) + 2
    assert boxes <= 3 * 3 * tensors
    assert seconds < PLANNING_SECONDS
