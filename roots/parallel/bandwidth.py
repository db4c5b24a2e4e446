"""How many bytes a second the processes of the group pass each other."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from roots.device import Device, synchronize

# Less than this is mostly the time of a start, and says little.
_LEAST_SECONDS = 0.05
_LEAST_BYTES = 1 << 16
_MOST_BYTES = {"cpu": 1 << 26, "cuda": 1 << 30}
_GROWTH = 4
_REPEATS = 3


def exchange_rate(device: Device) -> float:
    """Bytes a second from one to the other, of the two ranks of the group, the slower way.

    Each way is measured by itself; equal on both ranks.
    """
    rank = dist.get_rank()

    def send(source: int) -> Callable[[Tensor], object]:
        if rank == source:
            return lambda data: dist.send(data, dst=1 - source)
        return lambda data: dist.recv(data, src=source)

    return min(_rate(send(source), device) for source in (0, 1))


def all_reduce_rate(device: Device) -> float:
    """Bytes a second that each rank passes on in an all-reduce over the group; equal on all.

    A ring passes on 2 (n - 1) / n of all bytes, whatever n is.
    """
    size = dist.get_world_size()
    return _rate(dist.all_reduce, device) * 2 * (size - 1) / size


def _rate(pass_on: Callable[[Tensor], object], device: Device) -> float:
    """Bytes a second of `pass_on`, with as many bytes as take long enough; the best of a few."""
    count, seconds = _LEAST_BYTES, 0.0
    most = _MOST_BYTES[device.kind]
    while True:
        data = torch.zeros(count, dtype=torch.uint8, device=device.torch)
        # The first of a size is slower: buffers are made.
        seconds = min(_seconds(pass_on, data, device) for _ in range(2))
        if seconds >= _LEAST_SECONDS or count >= most:
            break
        count *= _GROWTH
    again = (_seconds(pass_on, data, device) for _ in range(_REPEATS - 1))
    return count / min(seconds, *again)


def _seconds(pass_on: Callable[[Tensor], object], data: Tensor, device: Device) -> float:
    """How long it took the rank for which it took longest: equal on all."""
    # All begin together.
    dist.all_reduce(torch.zeros(1, device=device.torch))
    synchronize(device)
    started = time.perf_counter()
    pass_on(data)
    synchronize(device)
    took = torch.tensor([time.perf_counter() - started], device=device.torch)
    dist.all_reduce(took, op=dist.ReduceOp.MAX)
    return max(float(took), 1e-9)
