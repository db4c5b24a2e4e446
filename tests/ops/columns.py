"""What the kernels promise of their sums over rows, such as gradients of biases."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def assert_sum_ignores_threads(run: Callable[[], Tensor]) -> None:
    """The sum is equal to the bit on one thread, on two and on five."""
    threads = torch.get_num_threads()
    sums = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            sums.append(run())
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(each, sums[0]) for each in sums)
