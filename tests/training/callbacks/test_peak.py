"""The peak table by real device names, and the measurement under simulated devices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from roots.device import Device
from roots.training.callbacks.peak import DEVICE_TABLE, device_peak, sustained_rate, table_peak


# Names as the driver reports them.
@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [
        ("Tesla V100-SXM2-16GB", "fp16", 125.0),
        ("Tesla V100-PCIE-32GB", "fp16", 112.0),
        ("Tesla V100S-PCIE-32GB", "fp32", 16.4),
        ("Tesla T4", "fp16", 65.0),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312.0),
        ("NVIDIA A100 80GB PCIe", "fp16", 312.0),
        ("NVIDIA A10", "bf16", 125.0),
        ("NVIDIA L4", "bf16", 121.0),
        ("NVIDIA L40", "bf16", 181.05),
        ("NVIDIA L40S", "bf16", 362.05),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756.0),
        ("NVIDIA H100 NVL", "bf16", 835.5),
        ("NVIDIA H200", "fp16", 989.4),
        ("NVIDIA GH200 480GB", "bf16", 989.4),
        ("NVIDIA B200", "bf16", 2250.0),
        ("NVIDIA GB200", "bf16", 2500.0),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("NVIDIA RTX A6000", "bf16", 154.8),
        ("NVIDIA RTX 6000 Ada Generation", "bf16", 364.2),
    ],
)
def test_known_names(name: str, precision: str, tflops: float) -> None:
    assert table_peak(name, precision) == pytest.approx(tflops * 1e12)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA A10G",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "Quadro RTX 6000",
        "Intel(R) Xeon(R) Platinum 8480+",
    ],
)
def test_other_chips_are_not_mistaken_for_listed_ones(name: str) -> None:
    assert table_peak(name, "fp16") is None


def test_mode_the_hardware_lacks_is_not_in_the_table() -> None:
    assert table_peak("Tesla V100-SXM2-16GB", "bf16") is None


def test_tf32_counts_where_products_may_use_it() -> None:
    assert table_peak("NVIDIA A100-SXM4-80GB", "fp32") == 19.5e12
    assert table_peak("NVIDIA A100-SXM4-80GB", "fp32", tf32=True) == 156e12
    assert table_peak("Tesla T4", "fp32", tf32=True) == 8.1e12


def test_every_entry_can_be_reached() -> None:
    for entry in DEVICE_TABLE:
        assert table_peak("NVIDIA " + " ".join(entry.words), "fp16") == entry.fp16 * 1e12


def simulated(rate: float, overhead: float) -> tuple[Callable[[int], float], list[float]]:
    """A device of constant FLOP/s with a fixed cost per call, and the log of its seconds."""
    log: list[float] = []

    def time_one(size: int) -> float:
        log.append(overhead + 2 * size**3 / rate)
        return log[-1]

    return time_one, log


@pytest.mark.parametrize("rate", [1e9, 5e10, 2e12, 1e15])
def test_measurement_finds_the_rate_within_its_budget(rate: float) -> None:
    time_one, log = simulated(rate, overhead=1e-5)
    assert sustained_rate(time_one, largest=8192, seconds=2.0) == pytest.approx(rate, rel=0.02)
    assert 1.0 < sum(log) <= 2.0


def test_slowest_arithmetic_stops_after_one_product() -> None:
    time_one, log = simulated(1e6, overhead=0.0)
    assert sustained_rate(time_one, largest=2048, seconds=2.0) == pytest.approx(1e6)
    assert len(log) == 1


def test_disturbed_products_do_not_lower_the_peak() -> None:
    quiet, _ = simulated(1e11, overhead=0.0)
    calls = iter(range(10**9))

    def disturbed(size: int) -> float:
        return quiet(size) * (1 if next(calls) % 3 == 0 else 4)

    assert sustained_rate(disturbed, largest=2048, seconds=2.0) == pytest.approx(1e11)


def test_cpu_is_measured_and_leaves_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    peak = device_peak(Device("cpu", 0), "fp32", seconds=0.2)
    assert peak.flops_per_second > 1e8
    assert "measured" in peak.source
    assert torch.equal(torch.random.get_rng_state(), before)
