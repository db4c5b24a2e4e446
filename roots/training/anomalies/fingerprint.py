"""A number that stands for all bits of a tensor: equal for equal tensors, another if a bit differs.

One pass of integer sums over the memory. Rows of bits are summed up, and each sum counts by its
place, so that values which change places between rows are noticed too.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORD_BYTES = 8
_ROW_WORDS = 1024
# Non-negative, so that a comparison by largest and smallest needs no care for overflow.
_MASK = 2**62 - 1


def fingerprint(tensor: Tensor) -> Tensor:
    """int64 []: from 0 to 2^62 - 1, on the tensor's device, for which the host does not wait."""
    memory = tensor.detach().contiguous().view(-1).view(torch.uint8)
    if memory.storage_offset() % _WORD_BYTES:
        memory = memory.clone()
    words = len(memory) // _WORD_BYTES
    whole = words // _ROW_WORDS * _ROW_WORDS
    rows = memory[: whole * _WORD_BYTES].view(torch.int64).view(-1, _ROW_WORDS).sum(1)
    rest = memory[whole * _WORD_BYTES : words * _WORD_BYTES].view(torch.int64)
    tail = memory[words * _WORD_BYTES :].to(torch.int64)
    sums = torch.cat([rows, rest, tail << 8 * torch.arange(len(tail), device=tensor.device)])
    # Odd factors lose no bit of a sum, all of which wrap around alike on every machine.
    factors = 2 * torch.arange(len(sums), device=tensor.device) + 1
    total = (sums * factors).sum()
    return (total ^ (total >> 32)) & _MASK


def fingerprints(tensors: list[Tensor]) -> Tensor:
    """int64 [number of tensors], of tensors on one device."""
    return torch.stack([fingerprint(tensor) for tensor in tensors])
