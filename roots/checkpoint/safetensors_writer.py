"""Writing safetensors files tensor by tensor: what is held in memory is one tensor, not a file.

A safetensors file is the length of its header (8 bytes, little-endian), the header as JSON (name ->
dtype, shape, data_offsets), and the raw tensors one behind the other. Shapes and dtypes are known
before any value is, so the header can go first.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from roots.checkpoint.dtypes import DTYPE_NAMES
from roots.checkpoint.file_record import FileRecord, new_digest
from roots.files import begin_writeback, sync_file

_HEADER_ALIGNMENT = 8
_BLOCK_BYTES = 16 << 20
# How far the digest may lag behind the disk within a tensor, which has to stay so long.
_BLOCKS_UNDIGESTED = 2


@dataclass(frozen=True)
class TensorPlan:
    """A tensor that is going to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Size of its values."""
        count = 1
        for size in self.shape:
            count *= size
        return count * self.dtype.itemsize


def split_by_bytes(plans: Iterable[TensorPlan], limit: int) -> list[list[TensorPlan]]:
    """Cut `plans`, in their order, into files of at most `limit` bytes.

    A tensor that is larger than the limit has a file of its own.
    """
    files: list[list[TensorPlan]] = []
    room = 0
    for plan in plans:
        if not files or plan.num_bytes > room:
            files.append([])
            room = limit
        files[-1].append(plan)
        room -= plan.num_bytes
    return files


class SafetensorsWriter:
    """An open safetensors file that takes its tensors in the order of `order`.

    What is written is digested by a thread beside it, and the disk begins with it at once, so that
    the flush at the end has little left to wait for.
    """

    def __init__(
        self,
        path: Path,
        plans: Sequence[TensorPlan],
        metadata: Mapping[str, str],
        *,
        durable: bool = True,
    ) -> None:
        """Write the header. `plans` are all tensors of the file, `metadata` is free text.

        Unless `durable` the file is neither flushed to the disk nor digested: `record` is then not
        to be asked for.
        """
        self._durable = durable
        # Wide elements first: every tensor then starts at a multiple of its element's size.
        self.order = sorted(plans, key=lambda plan: -plan.dtype.itemsize)
        self._path = path
        self._next = 0
        self._digest, self._bytes = new_digest(), 0
        self._digester = ThreadPoolExecutor(1, "roots-digest")
        self._undigested: deque[Future[None]] = deque()
        self._written_back = 0
        self._file: BinaryIO = path.open("wb", buffering=0)
        header = _header(self.order, metadata)
        self._append(memoryview(len(header).to_bytes(8, "little") + header))

    @property
    def record(self) -> FileRecord:
        """Length and digest of what is written, which need not be read again for them."""
        assert self._durable, "nothing was digested"
        self._digest_all_but(0)
        return FileRecord(self._bytes, self._digest.hexdigest())

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, kind: object, *others: object) -> None:
        self._digester.shutdown()
        self._file.close()
        if kind is None:
            assert self._next == len(self.order), f"{self._path}: tensors are missing"
            if self._durable:
                sync_file(self._path)

    def write(self, tensor: Tensor) -> None:
        """Append the values of the next tensor of `order`."""
        plan = self.order[self._next]
        assert tuple(tensor.shape) == plan.shape, f"{plan.name}: {tuple(tensor.shape)}"
        assert tensor.dtype == plan.dtype, f"{plan.name}: {tensor.dtype}"
        self._append(bytes_of(tensor.detach().cpu().contiguous()))
        self._digest_all_but(0)
        self._next += 1

    def _append(self, content: memoryview) -> None:
        while content:
            block = content[:_BLOCK_BYTES]
            count = self._file.write(block)
            self._bytes += count
            if self._durable:
                self._bring_to_disk(block[:count])
            content = content[count:]

    def _bring_to_disk(self, written: memoryview) -> None:
        """Have what was written last digested and, with what precedes it, written back."""
        self._undigested.append(self._digester.submit(self._update_digest, [written]))
        length = self._bytes - self._written_back
        if length >= _BLOCK_BYTES:
            begin_writeback(self._file.fileno(), self._written_back, length)
            self._written_back = self._bytes
        self._digest_all_but(_BLOCKS_UNDIGESTED)

    def _update_digest(self, block: list[memoryview]) -> None:
        """Digest a block and let go of it: once that is known to be done, its tensor can go."""
        self._digest.update(block.pop())

    def _digest_all_but(self, count: int) -> None:
        """Wait until no more than `count` blocks are to be digested."""
        while len(self._undigested) > count:
            self._undigested.popleft().result()


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor of the host; what is written there changes it."""
    if tensor.numel() == 0:
        return memoryview(b"")
    assert tensor.is_contiguous()
    # A single element is contiguous whatever its strides are; bytes are viewed with a stride of 1.
    flat = tensor.detach().as_strided((tensor.numel(),), (1,))
    return flat.view(torch.uint8).numpy().data


def _header(plans: Sequence[TensorPlan], metadata: Mapping[str, str]) -> bytes:
    tree: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for plan in plans:
        tree[plan.name] = {
            "dtype": DTYPE_NAMES[plan.dtype],
            "shape": list(plan.shape),
            "data_offsets": [position, position + plan.num_bytes],
        }
        position += plan.num_bytes
    text = json.dumps(tree).encode()
    return text + b" " * (-len(text) % _HEADER_ALIGNMENT)
