"""What a process of `roots doctor` does on its device: products, and passing bytes to others.

The only file of the room that loads torch; it runs in the processes that roots.doctor.agent starts.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from roots.device import (
    Device,
    LaunchEnvironment,
    current_device,
    device_count,
    device_name,
    synchronize,
)
from roots.doctor.survey import DeviceRate
from roots.parallel.bandwidth import all_reduce_rate, exchange_rate
from roots.parallel.process import initialise, shutdown

if TYPE_CHECKING:
    from collections.abc import Iterator

_SIZE = {"cpu": 512, "cuda": 8192}
_SECONDS = 0.6
_BATCHES = 6
# For meeting, and for each exchange.
_PATIENCE_SECONDS = 15.0


class DeviceWork:
    """The work of local rank `number`, whose device it chooses as a rank of a run does.

    Raises RuntimeError where that should be a GPU, and torch sees none of that number.
    """

    def __init__(self, number: int, on_gpu: bool = False) -> None:
        self.number = number
        if on_gpu and number >= (count := device_count()):
            raise RuntimeError(f"torch sees {count} GPUs")
        self.device = current_device(number)

    def start(self) -> dict[str, Any]:
        """Name the device: a DeviceRate without a rate."""
        return asdict(DeviceRate(device_name(self.device), self.device.kind))

    def matmul(self) -> dict[str, Any]:
        """Multiply matrices, in bfloat16 on a GPU and in float32 on a CPU; a DeviceRate."""
        rate, differs = matmul_rate(self.device)
        return {**self.start(), "matmul": rate, "differs": differs}

    def pair(self, address: str, ports: list[int], rank: int) -> dict[str, Any]:
        """Exchange bytes with the same device of another host; rank 0 is where they meet."""
        with self._group(address, ports[self.number], rank, 2):
            return {"rate": exchange_rate(self.device)}

    def reduce(
        self, address: str, port: int, first: int, size: int, local_size: int
    ) -> dict[str, Any]:
        """All-reduce over `size` ranks, of which `first` and those after it are on this host."""
        with self._group(address, port, first + self.number, size, local_size):
            return {"rate": all_reduce_rate(self.device)}

    @contextmanager
    def _group(
        self, address: str, port: int, rank: int, size: int, local_size: int = 1
    ) -> Iterator[None]:
        place = LaunchEnvironment(rank, self.number, size, local_size, address, port)
        try:
            initialise(place, self.device, _PATIENCE_SECONDS)
            yield
        finally:
            shutdown()


def matmul_rate(device: Device) -> tuple[float, bool]:
    """Floating-point operations a second, the best of a few batches; whether products differ.

    Every product is of the same two matrices. On processors the seconds are theirs, so that what
    others take of them makes no host slow; a clock that is held down does.
    """
    size = _SIZE[device.kind]
    dtype = torch.bfloat16 if device.kind == "cuda" else torch.float32
    # Small integers: equal on every device as long as it computes rightly.
    numbers = torch.arange(size * size, device=device.torch).reshape(size, size)
    left, right = ((numbers * step % 7 - 3).to(dtype) for step in (3, 5))
    first = left @ right
    started = _seconds(device)
    product = left @ right
    count = max(1, round(_SECONDS / _BATCHES / max(1e-6, _seconds(device) - started)))
    best, differs = 0.0, not torch.equal(first, product)
    for _ in range(_BATCHES):
        started = _seconds(device)
        for _ in range(count):
            torch.mm(left, right, out=product)
        best = max(best, count * 2.0 * size**3 / (_seconds(device) - started))
        differs = differs or not torch.equal(first, product)
    return best, differs


def _seconds(device: Device) -> float:
    """A clock: of this process on the processors it uses; for a GPU, of all once it is done."""
    if device.kind == "cpu":
        return time.process_time() / torch.get_num_threads()
    synchronize(device)
    return time.perf_counter()
