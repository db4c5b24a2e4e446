"""What the tests of layer_norm and rms_norm share."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.ops.accuracy import random_inputs

# Single warps and several rows a block, rows of several warps, lengths that no pack fills, more
# rows than walk at once.
SHAPES = [(5, 123), (1, 1, 40), (1, 769), (7, 1, 384), (11, 2080), (37, 8), (46, 9)]
# Two packs a thread and four in every dtype, and what is read twice.
LONG_ROWS = [(6, 4096), (2, 6144), (2, 12288), (3, 16640)]


def far_apart(rows: int, hidden: int) -> Tensor:
    """float16 rows that begin more than 2^31 elements after each other, of a sparse storage."""
    step = 2**31 + 8
    storage = torch.empty((rows - 1) * step + hidden, dtype=torch.float16)
    view = storage.as_strided((rows, hidden), (step, 1))
    view.copy_(random_inputs((rows, hidden))[0])
    return view


def at_odd_address(tensor: Tensor) -> Tensor:
    """A contiguous copy that begins one element behind a multiple of 16 bytes."""
    return (
        torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)[1:]
        .view(tensor.shape)
        .copy_(tensor)
    )
