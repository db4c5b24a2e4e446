"""Timing of two ways of computing the same thing, and the limits of the machine they run on.

The sides alternate, so that a neighbour's load falls on both, and medians are compared. On a CPU
one thread is charged its CPU time; several threads, the wall clock. On a GPU events are recorded
around a batch of calls that is long enough to hide the launch of the first.
"""

from __future__ import annotations

import ctypes
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from roots.device import Device, device_name

Call = Callable[[], object]

_COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 31}
_PRODUCT_SIZE = {"cpu": 2048, "cuda": 8192}
# On a CPU the product in float16 may run without any instruction for it, hundreds of times slower.
_SLOW_PRODUCT_SIZE = 256
_CPU_SECONDS_A_SAMPLE = 0.004
_GPU_SECONDS_A_SAMPLE = 0.002
# Of <malloc.h>.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_KEPT = (1 << 31) - 1


@dataclass(frozen=True)
class Limits:
    """What the machine reaches on a plain copy and a plain matrix product, in the same run.

    copy_bytes_per_second: bytes read plus bytes written. flops_per_second: by dtype name.
    """

    copy_bytes_per_second: float
    flops_per_second: dict[str, float]

    def seconds(self, moved_bytes: int, flops: int, dtype: torch.dtype) -> float:
        """The least time for so many bytes and floating-point operations."""
        rate = self.flops_per_second[str(dtype).removeprefix("torch.")]
        return max(moved_bytes / self.copy_bytes_per_second, flops / rate)


class Clock:
    """Seconds of a call on one device."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.now = time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def sample(self, call: Call, repeats: int) -> float:
        """Seconds of one of `repeats` calls in a row."""
        if self.device == "cpu":
            started = self.now()
            for _ in range(repeats):
                call()
            return (self.now() - started) / repeats
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / repeats

    def repeats_of(self, call: Call) -> int:
        """Calls that make a sample long enough to be measured; also warms up."""
        call()
        wanted = _CPU_SECONDS_A_SAMPLE if self.device == "cpu" else _GPU_SECONDS_A_SAMPLE
        seconds = min(self.sample(call, 1) for _ in range(3))
        return max(1, min(1000, int(wanted / max(seconds, 1e-7))))


def keep_freed_memory() -> None:
    """Have the C library reuse freed memory rather than return it to the kernel, for both sides.

    By default glibc maps and unmaps every large tensor, and the page faults of fresh memory cost
    as much as an element-wise op itself. Elsewhere than on Linux with glibc: nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST_KEPT)


def alternate(clock: Clock, sides: dict[str, Call], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every side, one a round, the sides taking turns."""
    repeats = {name: clock.repeats_of(call) for name, call in sides.items()}
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            samples[name].append(clock.sample(call, repeats[name]))
    return samples


def ratio(theirs: list[float], ours: list[float]) -> float:
    """How many times faster ours is: the median over rounds, each of which saw the same load."""
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def measure_limits(clock: Clock, dtypes: list[torch.dtype]) -> Limits:
    """Copy a large tensor and multiply two square matrices; the best of several."""
    device = clock.device
    source = torch.empty(_COPY_BYTES[device] // 4, device=device).normal_()
    target = torch.empty_like(source)
    copy = min(clock.sample(lambda: target.copy_(source), 1) for _ in range(10))
    rates = {}
    for dtype in dtypes:
        slow = device == "cpu" and dtype == torch.float16
        size = _SLOW_PRODUCT_SIZE if slow else _PRODUCT_SIZE[device]
        left = torch.randn(size, size, device=device).to(dtype)
        right = torch.randn(size, size, device=device).to(dtype)
        product = _product(left, right)
        repeats = 1 if device == "cpu" else 5
        seconds = min(clock.sample(product, repeats) for _ in range(6))
        rates[str(dtype).removeprefix("torch.")] = 2 * size**3 / seconds
    return Limits(2 * source.nbytes / copy, rates)


def _product(left: torch.Tensor, right: torch.Tensor) -> Call:
    return lambda: left @ right


def describe_machine(device: str) -> dict[str, Any]:
    """Where the figures come from."""
    return {
        "device": device_name(Device(device, 0)),
        "cores": os.cpu_count(),
        "threads_used": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }
