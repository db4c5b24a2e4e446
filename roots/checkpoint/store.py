"""Reading tensors of a checkpoint by any layout: what is wanted, cut with what is stored."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue

import torch
from torch import Tensor

from roots.checkpoint.boxes import Box, Numbers, Piece
from roots.checkpoint.tensor_file import StoredBox, block_for_reading, read_boxes, read_part
from roots.errors import RootsError, problem
from roots.parallel.chunk_plan import Part, plan_parts
from roots.parallel.shard import Shard

_READERS = 4


@dataclass(frozen=True)
class StoredTensor:
    """Everything stored of one global tensor."""

    shape: Numbers
    dtype: torch.dtype
    boxes: tuple[StoredBox, ...]


class TensorStore:
    """The tensors in some files of one checkpoint, readable by any part of any of them."""

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        """Index `files` by their headers. Raises RootsError if one is not of the format."""
        self.folder = folder
        boxes: dict[str, list[StoredBox]] = {}
        with ThreadPoolExecutor(_READERS) as readers:
            for found in readers.map(read_boxes, files):
                for each in found:
                    boxes.setdefault(each.tensor, []).append(each)
        self.tensors = {name: _together(found) for name, found in boxes.items()}

    def dtype(self, name: str) -> torch.dtype:
        """The dtype in which `name` is stored."""
        return self.tensors[name].dtype

    def read(self, wanted: Shard) -> Tensor:
        """Return the local tensor that `wanted` describes, in the stored dtype, on the CPU.

        Raises RootsError if the tensor is not stored, has another shape, or has a gap.
        """
        stored = self._find(wanted.name, wanted)
        local = torch.empty(wanted.local_shape, dtype=stored.dtype)
        self.fill([Piece(wanted.name, wanted, 0, local.view(-1))])
        return local

    def fill(self, pieces: Iterable[Piece]) -> None:
        """Read every piece into its `data`, casting to its dtype; some at a time.

        Raises RootsError as `read` does.
        """
        blocks: SimpleQueue[Tensor] = SimpleQueue()
        for _ in range(_READERS):
            blocks.put(block_for_reading())

        def read(descriptor: int, stored: StoredBox, part: Box, out: Tensor) -> None:
            block = blocks.get()
            try:
                read_part(descriptor, stored, part, out, block)
            finally:
                blocks.put(block)

        with _Files() as files, ThreadPoolExecutor(_READERS) as readers:
            tasks = [
                readers.submit(read, files.open(stored.file), stored, part, out)
                for piece in pieces
                for stored, part, out in self._plan(piece)
            ]
            for task in tasks:
                task.result()

    def _find(self, name: str, wanted: Shard) -> StoredTensor:
        """What is stored under `name`, or under what `wanted` is tied to."""
        stored = self.tensors.get(name)
        if stored is None and wanted.tied_to is not None:
            stored = self.tensors.get(name.removesuffix(wanted.name) + wanted.tied_to)
        if stored is None:
            raise self._mismatch(name, None, "is not in the checkpoint")
        if stored.shape != wanted.shape:
            rule = f"has shape {list(stored.shape)} in the checkpoint, not {list(wanted.shape)}"
            raise self._mismatch(name, list(wanted.shape), rule)
        return stored

    def _plan(self, piece: Piece) -> Iterator[tuple[StoredBox, Box, Tensor]]:
        """Every stored part of the piece with the view of it that takes it."""
        stored = self._find(piece.tensor, piece.shard)
        wanted = list(piece.boxes())
        plan = _parts(stored.boxes, [box for box, _ in wanted])
        for number, (box, view) in enumerate(wanted):
            found = plan.get(number, [])
            if sum(part.count for part in found) != box.count:
                raise self._gap(piece.tensor, stored, box, found)
            for part in found:
                out = view
                for dim, (start, size) in enumerate(zip(part.place, part.sizes, strict=True)):
                    out = out.narrow(dim, start, size)
                yield stored.boxes[part.source], Box(part.offsets, part.sizes), out

    def _gap(self, name: str, stored: StoredTensor, box: Box, found: Iterable[Part]) -> RootsError:
        count = box.count - sum(part.count for part in found)
        reach = ", ".join(
            f"{offset} to {offset + size}"
            for offset, size in zip(box.offsets, box.sizes, strict=True)
        )
        rule = f"lacks {count:,} of the elements [{reach}]"
        return self._mismatch(name, list(stored.shape), rule)

    def _mismatch(self, name: str, value: object, rule: str) -> RootsError:
        fix = f"is {self.folder} a checkpoint of another model? use the config stored beside it"
        return RootsError(problem(f"tensor {name}", value, rule, fix))


def _together(boxes: Sequence[StoredBox]) -> StoredTensor:
    """Boxes of one tensor, of which all say the same."""
    first = boxes[0]
    for each in boxes:
        if (each.shape, each.dtype) != (first.shape, first.dtype):
            fix = "use another checkpoint of the run"
            rule = f"holds another shape or dtype of {each.tensor} than the files before it"
            raise RootsError(problem("checkpoint file", str(each.file), rule, fix))
    return StoredTensor(first.shape, first.dtype, tuple(boxes))


def _parts(stored: Sequence[StoredBox], wanted: Sequence[Box]) -> dict[int, list[Part]]:
    """The parts to read for every wanted box, by its index; of stored ones they are known."""
    near = _near(stored, wanted)
    known = {stored[number].box: number for number in near}
    if all(box in known for box in wanted):
        start = (0,) * len(wanted[0].sizes) if wanted else ()
        return {
            number: [Part(known[box], start, start, box.sizes)] for number, box in enumerate(wanted)
        }
    held = [(stored[number].box.offsets, stored[number].box.sizes) for number in near]
    plan = plan_parts(held, [(box.offsets, box.sizes) for box in wanted])
    return {
        number: [replace(part, source=near[part.source]) for part in parts]
        for number, parts in plan.items()
    }


def _near(stored: Sequence[StoredBox], wanted: Sequence[Box]) -> list[int]:
    """The stored boxes, by index, that can have a share of what is wanted: few of many ranks'."""
    near = list(range(len(stored)))
    for dim in range(len(wanted[0].sizes) if wanted else 0):
        low = min(box.offsets[dim] for box in wanted)
        high = max(box.offsets[dim] + box.sizes[dim] for box in wanted)
        near = [
            number
            for number in near
            if stored[number].box.offsets[dim] < high
            and stored[number].box.offsets[dim] + stored[number].box.sizes[dim] > low
        ]
    return near


class _Files(ExitStack):
    """Open files, one descriptor each."""

    def __init__(self) -> None:
        super().__init__()
        self._open: dict[Path, int] = {}

    def open(self, path: Path) -> int:
        """The descriptor of `path`, open until this closes."""
        if path not in self._open:
            self._open[path] = self.enter_context(_opened(path))
        return self._open[path]


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
