"""Tensors read by any layout out of the boxes that any other one has written."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roots.checkpoint import tensor_file
from roots.checkpoint.boxes import Box, Piece, ranges
from roots.checkpoint.staging import entries_of
from roots.checkpoint.store import StoredTensor, TensorStore
from roots.checkpoint.tensor_file import Entry, StoredBox, write_entries
from roots.errors import RootsError
from roots.parallel.mesh import Axis
from roots.parallel.shard import chunked, replicated, slice_full

PLANNING_SECONDS = 1.0
PARTS = (12, 6, 6)
FULL = torch.randn(24, 5, generator=torch.Generator().manual_seed(4))
# The cut of a tensor over ranks: how many, and where ZeRO cuts what each of them holds.
Cut = tuple[int, list[float]]
# A folder that all examples write to.
SHARED = HealthCheck.function_scoped_fixture
cuts = st.tuples(st.sampled_from([1, 2, 3, 6]), st.lists(st.floats(0, 1), max_size=3).map(sorted))


def held(cut: Cut) -> list[Piece]:
    """What all ranks hold of a fused tensor, empty ranges left out."""
    size, shares = cut
    pieces = []
    for rank in range(size):
        axis = Axis("tensor", size, rank, tuple(range(size)))
        shard = chunked("x", tuple(FULL.shape), 0, axis, PARTS)
        local = slice_full(FULL, shard).reshape(-1)
        ends = [0, *(int(share * local.numel()) for share in shares), local.numel()]
        pieces += [
            Piece("x", shard, start, local[start:stop].clone())
            for start, stop in zip(ends[:-1], ends[1:], strict=True)
            if start < stop
        ]
    return pieces


def write(folder: Path, pieces: Sequence[Piece]) -> TensorStore:
    """A file for each piece, as if each were another rank's."""
    files = [folder / f"{number}.safetensors" for number in range(len(pieces))]
    for path, piece in zip(files, pieces, strict=True):
        write_entries(path, list(entries_of([piece])))
    return TensorStore(folder, files)


@given(written=cuts, wanted=cuts, bf16=st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[SHARED])
def test_every_rank_reads_what_it_wants(
    written: Cut, wanted: Cut, bf16: bool, tmp_path: Path
) -> None:
    store = write(tmp_path, held(written))
    dtype = torch.bfloat16 if bf16 else torch.float32
    for piece in held(wanted):
        out = Piece("x", piece.shard, piece.start, torch.empty(piece.data.shape, dtype=dtype))
        store.fill([out])
        assert torch.equal(out.data, piece.data.to(dtype))


@given(written=cuts, lost=st.integers(0, 23))
@settings(max_examples=15, deadline=None, suppress_health_check=[SHARED])
def test_lost_part_is_told_with_its_size(written: Cut, lost: int, tmp_path: Path) -> None:
    pieces = held(written)
    (tmp_path / "lost").mkdir(exist_ok=True)
    gone = pieces.pop(lost % len(pieces))
    if not pieces:
        return
    with pytest.raises(RootsError) as caught:
        write(tmp_path / "lost", pieces).read(replicated("x", tuple(FULL.shape)))
    assert caught.value.lines == (
        f"tensor x=[24, 5]: lacks {gone.data.numel()} of the elements [0 to 24, 0 to 5]; "
        f"is {tmp_path / 'lost'} a checkpoint of another model? use the config stored beside it",
    )


def test_files_that_disagree_are_told(tmp_path: Path) -> None:
    whole = Box((0,), (3,))
    files = [tmp_path / name for name in ("a", "b")]
    write_entries(files[0], [Entry("x", (3,), whole, torch.zeros(3))])
    write_entries(files[1], [Entry("x", (3,), whole, torch.zeros(3).half())])
    with pytest.raises(RootsError) as caught:
        TensorStore(tmp_path, files)
    assert caught.value.lines == (
        f"checkpoint file={str(files[1])!r}: holds another shape or dtype of x than the files "
        "before it; use another checkpoint of the run",
    )


def test_what_tied_parameters_have_of_the_optimizer_is_read_by_the_other_name(
    tmp_path: Path,
) -> None:
    write_entries(
        tmp_path / "a", [Entry("exp_avg/embedding", (2,), Box((0,), (2,)), torch.ones(2))]
    )
    out = torch.empty(2)
    tied = replicated("head", (2,), tied_to="embedding")
    TensorStore(tmp_path, [tmp_path / "a"]).fill([Piece("exp_avg/head", tied, 0, out)])
    assert out.tolist() == [1.0, 1.0]


TENSORS = 100


def of_ranks(ranks: int, path: Path) -> tuple[TensorStore, list[Piece]]:
    """Tensors that a rank wants of a checkpoint that so many have written in ranges of ZeRO's."""
    shape = (ranks, 256)
    path.touch()
    store = TensorStore(path.parent, [])
    # Each has the end of a row, and what is before the end of the next one.
    ends = [0, *(256 * rank - 3 for rank in range(1, ranks)), 256 * ranks]
    boxes = [
        StoredBox(path, "", shape, torch.float32, box, box.sizes, (0, 0), 0)
        for start, stop in pairwise(ends)
        for box, _ in ranges(shape, start, stop - start)
    ]
    wanted = []
    for number in range(TENSORS):
        shard = replicated(f"x{number}", shape)
        store.tensors[shard.name] = StoredTensor(shape, torch.float32, tuple(boxes))
        wanted.append(Piece(shard.name, shard, 128 * ranks + 7, torch.empty(512, device="meta")))
    return store, wanted


@pytest.mark.parametrize("ranks", [8, 64, 512])
def test_plan_of_a_read_is_quick_for_a_checkpoint_of_many_ranks(
    ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank reads the few parts that it wants, of each of its tensors."""
    store, wanted = of_ranks(ranks, tmp_path / "a")
    parts: list[Box] = []
    monkeypatch.setattr(
        "roots.checkpoint.store.read_part", lambda _, stored, part, *out: parts.append(part)
    )
    started = time.process_time()
    store.fill(wanted)
    seconds = time.process_time() - started
    assert sum(part.count for part in parts) == 512 * TENSORS
    assert len(parts) <= 8 * TENSORS
    assert seconds < PLANNING_SECONDS


def test_parts_are_read_through_a_block_a_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No part asks the allocator for memory, which would keep some in every thread."""
    full = torch.arange(40 * 64.0).view(40, 64)
    pieces = [
        Piece(f"x{number}", replicated(f"x{number}", (40, 64)), 0, full.view(-1))
        for number in range(9)
    ]
    store = write(tmp_path, pieces)
    columns = [
        chunked(each.tensor, (40, 64), 1, Axis("tensor", 4, 1, (0, 1, 2, 3)), (64,))
        for each in pieces
    ]
    wanted = [Piece(each.name, each, 0, torch.empty(40 * 16)) for each in columns]
    made: list[int] = []
    empty = torch.empty

    def counted(*sizes: int, **more: Any) -> torch.Tensor:
        made.append(1)
        return empty(*sizes, **more)

    monkeypatch.setattr(tensor_file.torch, "empty", counted)
    store.fill(wanted)
    assert sum(made) == 4
    for piece in wanted:
        assert torch.equal(piece.data.view(40, 16), full[:, 16:32])
