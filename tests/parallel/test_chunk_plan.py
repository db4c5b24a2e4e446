"""Parts of stored chunks that make up wanted ones: all that both have, and that once."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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


def test_what_is_not_stored_is_in_no_part() -> None:
    stored = [((0, 0), (2, 4)), ((4, 0), (2, 4))]
    plan = plan_parts(stored, [((1, 1), (4, 2)), ((2, 0), (2, 4)), ((0, 0), (0, 4))])
    assert plan == {
        0: [Part(0, (1, 1), (0, 0), (1, 2)), Part(1, (0, 1), (3, 0), (1, 2))],
    }


def test_scalars_are_chunks_too() -> None:
    assert plan_parts([((), ())], [((), ())]) == {0: [Part(0, (), (), ())]}
