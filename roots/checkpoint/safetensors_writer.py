"""Writing safetensors files tensor by tensor: what is held in memory is some blocks, not a file.

A safetensors file is the length of its header (8 bytes, little-endian), the header as JSON (name ->
dtype, shape, data_offsets), and the raw tensors one behind the other. Shapes and dtypes are known
before any value is, so the header can go first.
"""

from __future__ import annotations

import json
import mmap
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from roots.checkpoint.dtypes import DTYPE_NAMES
from roots.checkpoint.file_record import FileRecord, new_digest
from roots.files import DirectFile

_HEADER_ALIGNMENT = 8
# A file is written in blocks of a share of it, so that small ones take little memory.
_BLOCKS_OF_A_FILE = 32
_LEAST_BLOCK_BYTES, _MOST_BLOCK_BYTES = 1 << 20, 16 << 20
# One is filled while others are digested and written.
_BLOCKS = 3


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
    """An open safetensors file that takes its tensors in the order of `order`."""

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
        # Wide elements first: every tensor then starts at a multiple of its element's size.
        self.order = sorted(plans, key=lambda plan: -plan.dtype.itemsize)
        self._path = path
        self._next = 0
        header = _header(self.order, metadata)
        start = len(header).to_bytes(8, "little") + header
        length = len(start) + sum(plan.num_bytes for plan in plans)
        self._file: _Digested | _Plain = _Digested(path, length) if durable else _Plain(path)
        self._file.append(memoryview(start))

    @property
    def record(self) -> FileRecord:
        """Length and digest of what was written, once it is closed: it need not be read again."""
        assert isinstance(self._file, _Digested), "nothing was digested"
        return self._file.record

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, kind: object, *others: object) -> None:
        whole = self._next == len(self.order)
        self._file.close(whole=whole and kind is None)
        assert whole or kind is not None, f"{self._path}: tensors are missing"

    def write(self, tensor: Tensor) -> None:
        """Append the values of the next tensor of `order`."""
        plan = self.order[self._next]
        assert tuple(tensor.shape) == plan.shape, f"{plan.name}: {tuple(tensor.shape)}"
        assert tensor.dtype == plan.dtype, f"{plan.name}: {tensor.dtype}"
        self._file.append(bytes_of(tensor.detach().cpu().contiguous()))
        self._next += 1


class _Plain:
    """A file that its disk, or memory, takes as it likes."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("wb", buffering=0)

    def append(self, content: memoryview) -> None:
        while content:
            content = content[self._file.write(content[:_MOST_BLOCK_BYTES]) :]

    def close(self, *, whole: bool) -> None:
        self._file.close()


class _Digested:
    """A file that is digested and written block by block, both beside whoever fills the next.

    The disk begins with the first block, so that the flush at the end has little to wait for.
    """

    def __init__(self, path: Path, num_bytes: int) -> None:
        self._file = DirectFile(path)
        self._block_bytes = _block_bytes(num_bytes)
        self._digest, self._bytes = new_digest(), 0
        self._threads = ThreadPoolExecutor(1, "roots-digest"), ThreadPoolExecutor(1, "roots-write")
        self._busy: deque[tuple[mmap.mmap, list[Future[None]]]] = deque()
        self._block, self._filled = self._new_block(), 0

    @property
    def record(self) -> FileRecord:
        return FileRecord(self._bytes, self._digest.hexdigest())

    def append(self, content: memoryview) -> None:
        while content:
            count = min(len(content), self._block_bytes - self._filled)
            # Unlike a slice of bytes, numpy lets other threads run meanwhile.
            target = np.frombuffer(self._block, np.uint8, count, self._filled)
            np.copyto(target, np.frombuffer(content, np.uint8, count))
            self._filled += count
            content = content[count:]
            if self._filled == self._block_bytes:
                self._pass_on()
                self._block = self._free_block()

    def close(self, *, whole: bool) -> None:
        try:
            if whole:
                if self._filled:
                    self._pass_on()
                while self._busy:
                    self._wait()
        except BaseException:
            whole = False
            raise
        finally:
            for thread in self._threads:
                thread.shutdown(cancel_futures=True)
            self._file.close(durable=whole)

    def _pass_on(self) -> None:
        """Have what was filled digested and written."""
        block, length = memoryview(self._block), self._filled
        digester, writer = self._threads
        tasks = [
            digester.submit(self._digest.update, block[:length]),
            writer.submit(self._file.write, block, length),
        ]
        self._busy.append((self._block, tasks))
        self._bytes += length
        self._filled = 0

    def _wait(self) -> mmap.mmap:
        """Wait for the block that has been busy longest, and return it."""
        block, tasks = self._busy.popleft()
        for task in tasks:
            task.result()
        return block

    def _free_block(self) -> mmap.mmap:
        return self._wait() if len(self._busy) == _BLOCKS else self._new_block()

    def _new_block(self) -> mmap.mmap:
        return mmap.mmap(-1, self._block_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _block_bytes(num_bytes: int) -> int:
    """The length of the blocks of a file, as its system may ask for."""
    share = min(max(num_bytes // _BLOCKS_OF_A_FILE, _LEAST_BLOCK_BYTES), _MOST_BLOCK_BYTES)
    return -(-min(share, num_bytes) // DirectFile.ALIGNMENT) * DirectFile.ALIGNMENT


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
