"""Parts of stored chunks that make up wanted ones: all that both have, and that once."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint import metadata
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from roots.parallel.chunk_plan import Chunk, Part, plan_parts


def tiles(draw: st.DrawFn, shape: tuple[int, ...]) -> list[Chunk]:
    """A tensor of `shape` cut along every dimension, each time somewhere else."""
    chunks: list[Chunk] = [((), ())]
    for size in shape:
        cuts = sorted(draw(st.sets(st.integers(0, size), max_size=3)) | {0, size})
        chunks = [
            ((*offsets, start), (*sizes, stop - start))
            for offsets, sizes in chunks
            for start, stop in zip(cuts[:-1], cuts[1:], strict=True)
        ]
    return chunks


@st.composite
def cases(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Chunk], list[Chunk]]:
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    return shape, tiles(draw, shape), tiles(draw, shape)


def inside(chunk: Chunk, full: torch.Tensor) -> torch.Tensor:
    for dim, (offset, size) in enumerate(zip(*chunk, strict=True)):
        full = full.narrow(dim, offset, size)
    return full


@given(cases())
@settings(max_examples=200, deadline=None)
def test_every_wanted_chunk_is_read_whole_and_once(
    case: tuple[tuple[int, ...], list[Chunk], list[Chunk]],
) -> None:
    shape, stored, wanted = case
    whole = torch.arange(torch.Size(shape).numel()).view(shape)
    plan = plan_parts(stored, wanted)
    for number, chunk in enumerate(wanted):
        expected = inside(chunk, whole)
        found, times = torch.full_like(expected, -1), torch.zeros_like(expected)
        for part in plan.get(number, []):
            values = inside((part.offsets, part.sizes), inside(stored[part.source], whole))
            inside((part.place, part.sizes), found).copy_(values)
            inside((part.place, part.sizes), times).add_(1)
            assert part.count == values.numel() > 0
        assert torch.equal(found, expected)
        assert times.unique().tolist() in ([1], [])


def planned_by_torch(stored: list[Chunk], wanted: list[Chunk]) -> dict[int, list[Part]]:
    """As torch's distributed checkpoint plans it."""

    def described(chunks: list[Chunk]) -> list[metadata.ChunkStorageMetadata]:
        return [
            metadata.ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
            for offsets, sizes in chunks
        ]

    properties = metadata.TensorProperties()
    held = metadata.TensorStorageMetadata(properties, torch.Size(), described(stored))
    plan: dict[int, list[Part]] = {}
    for item in create_read_items_for_chunk_list("", held, described(wanted)):
        places = (item.storage_offsets, item.dest_offsets, item.lengths)
        part = Part(item.storage_index.index or 0, *(tuple(each) for each in places))
        plan.setdefault(item.dest_index.index or 0, []).append(part)
    # Its order is that of a search, and depends on where the chunks lie.
    return {target: sorted(parts, key=lambda part: part.source) for target, parts in plan.items()}


@given(cases())
@settings(max_examples=50, deadline=None)
def test_parts_are_those_of_torch(
    case: tuple[tuple[int, ...], list[Chunk], list[Chunk]],
) -> None:
    _, stored, wanted = case
    assert plan_parts(stored, wanted) == planned_by_torch(stored, wanted)


def test_planning_needs_nothing_of_torchs_distributed_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its imports take 50 MB of every rank and a second of every start."""
    for name in [each for each in sys.modules if each.startswith("torch.distributed.checkpoint")]:
        monkeypatch.setitem(sys.modules, name, None)
    assert plan_parts([((0,), (4,))], [((1,), (2,))]) == {0: [Part(0, (1,), (0,), (2,))]}


def test_what_is_not_stored_is_in_no_part() -> None:
    stored = [((0, 0), (2, 4)), ((4, 0), (2, 4))]
    plan = plan_parts(stored, [((1, 1), (4, 2)), ((2, 0), (2, 4)), ((0, 0), (0, 4))])
    assert plan == {
        0: [Part(0, (1, 1), (0, 0), (1, 2)), Part(1, (0, 1), (3, 0), (1, 2))],
    }


def test_scalars_are_chunks_too() -> None:
    assert plan_parts([((), ())], [((), ())]) == {0: [Part(0, (), (), ())]}
