"""Files of boxes of global tensors: safetensors, written as a stream and read in parts.

The metadata of a file says under "boxes" where its entries lie in the global tensors:

    {entry: {"tensor": key, "shape": [the global tensor's], "offsets": [of the entry in it]}}

An entry that is whole is named like its tensor. Files of the first format, which are read as well,
have instead "shards": {tensor: {"shape", "dim", "intervals"}}, intervals of a dimension that the
entry holds one after the other (roots/parallel/shard.py).

Neither is done by the library, which makes a second copy of all that it writes, and maps what it
reads into memory, where a file counts beside the tensors that it fills.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from roots.checkpoint.boxes import Box, Numbers
from roots.checkpoint.dtypes import DTYPES
from roots.checkpoint.file_record import FileRecord
from roots.checkpoint.safetensors_writer import SafetensorsWriter, TensorPlan, bytes_of
from roots.errors import RootsError, problem

SUFFIX = ".safetensors"
_LENGTH_BYTES = 8
_MOST_HEADER_BYTES = 1 << 30
# Several readers hold one each at a time.
_BLOCK_BYTES = 2 << 20
# Shorter runs of bytes are read with what lies between them.
_SHORT_RUN_BYTES = 64 << 10


@dataclass(frozen=True)
class Entry:
    """A box of global tensor `tensor`, of `shape`, to be written; `data` has the box's sizes."""

    tensor: str
    shape: Numbers
    box: Box
    data: Tensor


@dataclass(frozen=True)
class StoredBox:
    """A box that a file holds: at `start` of an entry of `entry` elements, from byte `position`."""

    file: Path
    tensor: str
    shape: Numbers
    dtype: torch.dtype
    box: Box
    entry: Numbers
    start: Numbers
    position: int


def write_entries(
    path: Path, entries: Sequence[Entry], check: Callable[[Entry], None] = lambda _: None
) -> FileRecord:
    """Write a new file, flush it to the disk, and return its length and digest.

    Entries need not be contiguous, nor on the host; one at a time is made so. What `check` raises,
    called with each before it is written, ends the writing. Raises OSError.
    """
    return _write(path, entries, check, durable=True).record


def copy_entries(path: Path, entries: Sequence[Entry]) -> None:
    """Write a new file as fast as its disk, or memory, takes it: nothing is flushed or digested."""
    _write(path, entries, lambda _: None, durable=False)


def planned(entries: Sequence[Entry]) -> tuple[list[TensorPlan], dict[str, str]]:
    """What a file of `entries` holds, in their order, and its metadata."""
    plans, records = [], {}
    for entry, name in zip(entries, _names(entries), strict=True):
        plans.append(TensorPlan(name, entry.box.sizes, entry.data.dtype))
        records[name] = {
            "tensor": entry.tensor,
            "shape": entry.shape,
            "offsets": entry.box.offsets,
        }
    return plans, {"boxes": json.dumps(records)}


def _write(
    path: Path, entries: Sequence[Entry], check: Callable[[Entry], None], *, durable: bool
) -> SafetensorsWriter:
    plans, metadata = planned(entries)
    named = {plan.name: entry for plan, entry in zip(plans, entries, strict=True)}
    with SafetensorsWriter(path, plans, metadata, durable=durable) as writer:
        for plan in writer.order:
            check(named[plan.name])
            writer.write(named[plan.name].data)
    return writer


def _names(entries: Iterable[Entry]) -> Iterator[str]:
    """A name in the file for each entry: the tensor's, and of further boxes that with a number."""
    seen: dict[str, int] = {}
    for entry in entries:
        number = seen.get(entry.tensor, 0)
        seen[entry.tensor] = number + 1
        yield entry.tensor if number == 0 else f"{entry.tensor}#{number}"


def read_boxes(path: Path) -> list[StoredBox]:
    """What `path` holds. Raises RootsError if that is not in one of the two forms above."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            size = os.fstat(file.fileno()).st_size
            if not 0 < length <= min(_MOST_HEADER_BYTES, size - _LENGTH_BYTES):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header: dict[str, Any] = json.loads(file.read(length))
        metadata = header.pop("__metadata__")
        first = _LENGTH_BYTES + length
        if "boxes" in metadata:
            return list(_boxes(path, header, json.loads(metadata["boxes"]), first, size))
        return list(_boxes_of_shards(path, header, json.loads(metadata["shards"]), first, size))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        rule = f"holds no weights of ROOTS ({type(error).__name__}: {error})"
        fix = "use another checkpoint of the run"
        raise RootsError(problem("checkpoint file", str(path), rule, fix)) from None


def _boxes(
    path: Path, header: dict[str, Any], records: dict[str, Any], first: int, size: int
) -> Iterator[StoredBox]:
    for name, record in records.items():
        dtype, sizes, position = _entry(header[name], first, size)
        shape, offsets = _numbers(record["shape"]), _numbers(record["offsets"])
        if not len(shape) == len(offsets) == len(sizes):
            raise ValueError(f"{name} is not of the dimensions of its tensor")
        for length, offset, part in zip(shape, offsets, sizes, strict=True):
            if offset + part > length:
                raise ValueError(f"{name} reaches out of its tensor")
        start = (0,) * len(sizes)
        box = Box(offsets, sizes)
        yield StoredBox(path, str(record["tensor"]), shape, dtype, box, sizes, start, position)


def _boxes_of_shards(
    path: Path, header: dict[str, Any], records: dict[str, Any], first: int, size: int
) -> Iterator[StoredBox]:
    for name, record in records.items():
        dtype, entry, position = _entry(header[name], first, size)
        shape, dim, intervals = _numbers(record["shape"]), record["dim"], record["intervals"]
        intervals = [_numbers(each) for each in intervals]
        if dim is None:
            if intervals or entry != shape:
                raise ValueError(f"the record of {name} is of another shape")
            box = Box((0,) * len(shape), shape)
            yield StoredBox(path, name, shape, dtype, box, entry, box.offsets, position)
            continue
        _check_intervals(name, shape, dim, intervals, entry)
        local = 0
        for begin, end in intervals:
            offsets, start = [0] * len(shape), [0] * len(shape)
            offsets[dim], start[dim] = begin, local
            sizes = (*shape[:dim], end - begin, *shape[dim + 1 :])
            box = Box(tuple(offsets), sizes)
            yield StoredBox(path, name, shape, dtype, box, entry, tuple(start), position)
            local += end - begin


def _check_intervals(
    name: str, shape: Numbers, dim: object, intervals: Sequence[Numbers], entry: Numbers
) -> None:
    if not isinstance(dim, int) or not 0 <= dim < len(shape):
        raise ValueError(f"{name} has no dimension {dim}")
    if not all(start <= stop <= shape[dim] for start, stop in intervals):
        raise ValueError(f"{name} has no rows {intervals}")
    rows = sum(stop - start for start, stop in intervals)
    if (*shape[:dim], rows, *shape[dim + 1 :]) != entry:
        raise ValueError(f"the record of {name} is of another shape")


def _entry(record: dict[str, Any], first: int, size: int) -> tuple[torch.dtype, Numbers, int]:
    """Dtype, shape and first byte of what the header describes; it must lie in the file."""
    dtype, shape = DTYPES[record["dtype"]], _numbers(record["shape"])
    begin, end = _numbers(record["data_offsets"])
    if end - begin != math.prod(shape) * dtype.itemsize or first + end > size:
        raise ValueError("the length of an entry is not that of its shape")
    return dtype, shape, first + begin


def _numbers(values: Iterable[object]) -> Numbers:
    numbers = tuple(values)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"{numbers} are no sizes")
    return numbers  # type: ignore[return-value]  # as just checked


def block_for_reading() -> Tensor:
    """Memory that `read_part` may use, by one thread at a time.

    Kept by whoever reads many parts: memory that is asked for and given back by every part stays
    with the threads of the allocator, which may hold many times as much.
    """
    return torch.empty(_BLOCK_BYTES, dtype=torch.uint8)


@dataclass(frozen=True)
class _Source:
    """A stored box in its open file, and the block to read through."""

    descriptor: int
    stored: StoredBox
    block: Tensor

    def room(self, sizes: Iterable[int]) -> Tensor:
        """A tensor of `sizes` in the block; a row may be longer, and then has memory of its own."""
        sizes = tuple(sizes)
        num_bytes = math.prod(sizes) * self.stored.dtype.itemsize
        if num_bytes > self.block.numel():
            return torch.empty(sizes, dtype=self.stored.dtype)
        return self.block[:num_bytes].view(self.stored.dtype).view(sizes)


def read_part(descriptor: int, stored: StoredBox, part: Box, out: Tensor, block: Tensor) -> None:
    """Copy `part` of the stored box, its offsets counted from the box's, into `out`, of its sizes.

    `out` may be a view, of another dtype, and on another device; then it is read through `block`,
    and little more than `part` is read.
    """
    offsets = tuple(a + b for a, b in zip(stored.start, part.offsets, strict=True))
    _read(_Source(descriptor, stored, block), (offsets, part.sizes), 0, 0, out)


def _read(
    source: _Source,
    region: tuple[Numbers, Numbers],
    dim: int,
    element: int,
    out: Tensor,
) -> None:
    """Copy the region's dimensions from `dim` on, of the entry's row that starts at `element`."""
    offsets, sizes = region
    row = math.prod(source.stored.entry[dim + 1 :])
    whole = sizes[dim + 1 :] == source.stored.entry[dim + 1 :]
    if dim == len(sizes):
        _read_rows(source, element, 1, out.view(1))
        return
    first = element + offsets[dim] * row
    run = math.prod(sizes[dim + 1 :]) * source.stored.dtype.itemsize
    if whole:
        _read_rows(source, first, row, out)
    elif run >= _SHORT_RUN_BYTES or row * source.stored.dtype.itemsize > _BLOCK_BYTES:
        for index in range(sizes[dim]):
            _read(source, region, dim + 1, first + index * row, out[index])
    else:
        _read_between(source, region, dim, first, out)


def _read_rows(source: _Source, element: int, row: int, out: Tensor) -> None:
    """Fill `out`, [rows, ...] of `row` elements each, with what follows on `element`."""
    if out.is_contiguous() and out.dtype == source.stored.dtype and out.device.type == "cpu":
        _fill(source, element, out)
        return
    step = max(1, _BLOCK_BYTES // max(1, row * source.stored.dtype.itemsize))
    for start in range(0, out.shape[0], step):
        target = out[start : start + step]
        block = source.room(target.shape)
        _fill(source, element + start * row, block)
        target.copy_(block)


def _read_between(
    source: _Source,
    region: tuple[Numbers, Numbers],
    dim: int,
    element: int,
    out: Tensor,
) -> None:
    """As `_read` for rows of which little is left out: whole ones are read, some at a time."""
    offsets, sizes = region
    inner = source.stored.entry[dim + 1 :]
    row = math.prod(inner)
    step = max(1, _BLOCK_BYTES // (row * source.stored.dtype.itemsize))
    for start in range(0, sizes[dim], step):
        target = out[start : start + step]
        block = source.room((target.shape[0], *inner))
        _fill(source, element + start * row, block)
        for axis in range(dim + 1, len(sizes)):
            block = block.narrow(axis - dim, offsets[axis], sizes[axis])
        target.copy_(block)


def _fill(source: _Source, element: int, out: Tensor) -> None:
    """Read contiguous `out` from `element` of the entry on."""
    content = bytes_of(out)
    position, done = source.stored.position + element * source.stored.dtype.itemsize, 0
    while done < len(content):
        count = os.preadv(source.descriptor, [content[done:]], position + done)
        if count == 0:
            fix = "use another checkpoint of the run"
            raise RootsError(
                problem("checkpoint file", str(source.stored.file), "is cut short", fix)
            )
        done += count
