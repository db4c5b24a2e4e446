"""The FLOP/s that a device can reach in matrix products: the denominator of MFU.

GPUs are looked up in a table of data sheet figures: dense (where a sheet prints the figure with 2:4
sparsity, half of it) and with fp32 accumulation, as training multiplies. A CPU, or a GPU which the
table does not know, is measured for about two seconds with the matrix product of the compute dtype.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from roots.device import Device, device_name, synchronize

TERA = 1e12
MEASURE_SECONDS = 2.0
SMALLEST_PRODUCT = 128
LARGEST_PRODUCT = {"cpu": 2048, "cuda": 8192}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Peak:
    """What one device could do: FLOP/s, and where the figure comes from, for people."""

    flops_per_second: float
    source: str


@dataclass(frozen=True)
class DeviceRates:
    """TFLOP/s of one GPU, dense; None where the hardware has no such mode.

    `words` must all occur in the device's name. More specific entries stand first in the table.
    """

    words: tuple[str, ...]
    fp16: float
    bf16: float | None
    tf32: float | None
    fp32: float


DEVICE_TABLE: tuple[DeviceRates, ...] = (
    # NVIDIA V100 data sheet, 2020. No bf16, no TF32.
    DeviceRates(("v100", "pcie"), 112.0, None, None, 14.0),
    DeviceRates(("v100s",), 130.0, None, None, 16.4),
    DeviceRates(("v100",), 125.0, None, None, 15.7),
    # NVIDIA T4 data sheet, 2019.
    DeviceRates(("t4",), 65.0, None, None, 8.1),
    # NVIDIA A100 data sheet, 2021; the A800 differs in its links only.
    DeviceRates(("a100",), 312.0, 312.0, 156.0, 19.5),
    DeviceRates(("a800",), 312.0, 312.0, 156.0, 19.5),
    # NVIDIA A40, A10 and L4 data sheets.
    DeviceRates(("a40",), 149.7, 149.7, 74.8, 37.4),
    DeviceRates(("a10",), 125.0, 125.0, 62.5, 31.2),
    DeviceRates(("l4",), 121.0, 121.0, 60.0, 30.3),
    # NVIDIA L40 and L40S data sheets, 2023.
    DeviceRates(("l40s",), 362.05, 362.05, 183.0, 91.6),
    DeviceRates(("l40",), 181.05, 181.05, 90.5, 90.5),
    # NVIDIA H100 data sheet, 2023: PCIe card, NVL card, SXM module; the H800 differs in its links.
    DeviceRates(("h100", "pcie"), 756.0, 756.0, 378.0, 51.0),
    DeviceRates(("h100", "nvl"), 835.5, 835.5, 417.5, 60.0),
    DeviceRates(("h100",), 989.4, 989.4, 494.7, 66.9),
    DeviceRates(("h800", "pcie"), 756.0, 756.0, 378.0, 51.0),
    DeviceRates(("h800",), 989.4, 989.4, 494.7, 66.9),
    # NVIDIA H200 (2024) and GH200 (2023) data sheets: the same chip with other memory.
    DeviceRates(("h200", "nvl"), 835.5, 835.5, 417.5, 60.0),
    DeviceRates(("h200",), 989.4, 989.4, 494.7, 66.9),
    DeviceRates(("gh200",), 989.4, 989.4, 494.7, 66.9),
    # NVIDIA Blackwell data sheet, 2025: HGX B200 at 1000 W, GB200 NVL72 at 1200 W.
    DeviceRates(("b200",), 2250.0, 2250.0, 1100.0, 75.0),
    DeviceRates(("gb200",), 2500.0, 2500.0, 1250.0, 80.0),
    # NVIDIA Ampere GA102, Ada and RTX Blackwell architecture white papers, appendices.
    DeviceRates(("rtx", "3090"), 71.0, 71.0, 35.6, 35.6),
    DeviceRates(("rtx", "4090"), 165.2, 165.2, 82.6, 82.6),
    DeviceRates(("rtx", "5090"), 209.5, 209.5, 104.8, 104.8),
    DeviceRates(("rtx", "a6000"), 154.8, 154.8, 77.4, 38.7),
    DeviceRates(("rtx", "6000", "ada"), 364.2, 364.2, 182.1, 91.1),
)

# Words that mark another or a partial chip: laptop and cut-down parts, slices of a partitioned GPU.
OTHER_CHIP = frozenset({"laptop", "max", "mig", "d", "ti"})


def device_peak(device: Device, precision: str, seconds: float = MEASURE_SECONDS) -> Peak:
    """Return the peak of `device` for training in `precision` ("fp32", "bf16", "fp16").

    On a CPU, and on a GPU that the table lacks, this measures for about `seconds`. Ranks that share
    a machine should measure at the same time, as they will train.
    """
    name = device_name(device)
    tf32 = torch.get_float32_matmul_precision() != "highest"
    listed = table_peak(name, precision, tf32=tf32) if device.kind == "cuda" else None
    mode = "tf32" if device.kind == "cuda" and precision == "fp32" and tf32 else precision
    if listed is not None:
        return Peak(listed, f"{name}, {mode}, dense, by its data sheet")
    timer = ProductTimer(device, DTYPES[precision])
    rate = sustained_rate(timer, LARGEST_PRODUCT[device.kind], seconds)
    threads = f", {torch.get_num_threads()} threads" if device.kind == "cpu" else ""
    return Peak(rate, f"{name}, {mode}{threads}, measured with matrix products")


def table_peak(name: str, precision: str, *, tf32: bool = False) -> float | None:
    """FLOP/s by the data sheet of the GPU called `name`, or None if it is not listed.

    `tf32` says that fp32 products may round their inputs to TF32.
    """
    words = set(re.findall(r"[a-z0-9]+", name.lower()))
    if words & OTHER_CHIP:
        return None
    for entry in DEVICE_TABLE:
        if words.issuperset(entry.words):
            rates = {"fp16": entry.fp16, "bf16": entry.bf16, "fp32": entry.fp32}
            rate = rates[precision]
            if precision == "fp32" and tf32 and entry.tf32 is not None:
                rate = entry.tf32
            return None if rate is None else rate * TERA
    return None


def sustained_rate(time_one: Callable[[int], float], largest: int, seconds: float) -> float:
    """Best FLOP/s of square matrix products within about `seconds`.

    `time_one(size)` runs one product of that size and returns its seconds. Sizes double while the
    next one is expected to take at most an eighth of the budget, so the slowest arithmetic (fp16
    emulated on a CPU) ends as timely as the fastest. The best is taken because disturbances only
    ever slow a product down.
    """
    size, spent, best = SMALLEST_PRODUCT, 0.0, 0.0
    while True:
        took = time_one(size)
        spent += took
        best = max(best, 2 * size**3 / took)
        if size < largest and 8 * took <= seconds / 8:
            size *= 2
        elif spent + took > seconds:
            return best


class ProductTimer:
    """Times products of square matrices on a device, one size after the other."""

    def __init__(self, device: Device, dtype: torch.dtype) -> None:
        self._device = device
        self._dtype = dtype
        self._left = self._right = torch.empty(0, 0)

    def __call__(self, size: int) -> float:
        """Seconds of one product of two size x size matrices."""
        if self._left.shape[0] != size:
            self._left, self._right = self._random(size), self._random(size)
            if size == SMALLEST_PRODUCT or self._device.kind == "cuda":
                # The first call loads or picks library code, which says nothing about the device.
                torch.nn.functional.linear(self._left, self._right)
        synchronize(self._device)
        start = time.perf_counter()
        torch.nn.functional.linear(self._left, self._right)
        synchronize(self._device)
        return time.perf_counter() - start

    def _random(self, size: int) -> torch.Tensor:
        """A matrix of normal numbers, drawn without touching the global random state."""
        generator = torch.Generator(self._device.torch).manual_seed(size)
        drawn = torch.randn(size, size, generator=generator, device=self._device.torch)
        return drawn.to(self._dtype)
