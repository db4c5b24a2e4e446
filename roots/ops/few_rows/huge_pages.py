"""Tensors of a CPU in huge pages, which it reads up to twice as fast.

Weights that are read once a token are in no cache, and neither are the translations of their
addresses: with pages of 4 KiB every 64th cache line waits for one, in a virtual machine for two.
Linux gives pages of 2 MiB to memory that asks for them (transparent_hugepage: madvise or always);
where it does not, or elsewhere than on Linux, the tensors are in plain pages.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import sys
from collections.abc import Iterable

import torch
from torch import Tensor

HUGE_PAGE_BYTES = 2 << 20
_ALIGNMENT = 64


def empty_in_huge_pages(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor in memory of its own, which is whole huge pages."""
    size = math.prod(shape) * dtype.itemsize
    return _region(size)[:size].view(dtype).view(shape)


def move_to_huge_pages(tensors: Iterable[Tensor]) -> None:
    """Give every tensor of a CPU new, contiguous memory, all of it in one region of huge pages.

    What views one of them keeps the old memory. The region is freed when none of them is left.
    """
    moved = [tensor for tensor in tensors if tensor.device.type == "cpu" and tensor.numel() > 0]
    if not moved:
        return
    region = _region(sum(_aligned(tensor.nbytes) for tensor in moved))
    start = 0
    for tensor in moved:
        target = region[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        target.copy_(tensor.detach())
        tensor.data = target
        start += _aligned(target.nbytes)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _region(size: int) -> Tensor:
    """At least `size` bytes from a multiple of a huge page on."""
    whole = max(1, -(-size // HUGE_PAGE_BYTES)) * HUGE_PAGE_BYTES
    if sys.platform == "win32":
        return torch.empty(whole, dtype=torch.uint8)
    kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, whole + HUGE_PAGE_BYTES, flags=kind)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # A kernel without huge pages refuses the advice.
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    held = torch.frombuffer(memory, dtype=torch.uint8)
    first = -held.data_ptr() % HUGE_PAGE_BYTES
    return held[first : first + whole]
