"""Speed of a run: tokens/s, TFLOP/s and MFU of a step, and the line that explains them."""

from __future__ import annotations

from dataclasses import dataclass

from roots.planner.flops import MFU_FORMULA, mfu
from roots.training.peak import TERA, Peak


@dataclass(frozen=True)
class Rates:
    """Speed of a step: tokens/s of the whole run, model TFLOP/s of one device, MFU (share of 1)."""

    tokens_per_second: float
    tflops: float
    mfu: float


@dataclass(frozen=True)
class Throughput:
    """What is constant over a run: the work of a token and what the devices could do.

    `flops_per_token` is planner.flops.training_flops_per_token, `peak` that of one device (the mean
    over ranks where they were measured), `num_devices` the world size.
    """

    flops_per_token: int
    peak: Peak
    num_devices: int

    def rates(self, tokens: int, seconds: float) -> Rates:
        """Rates of a step that took `tokens` of the global batch through the model in `seconds`."""
        per_second = tokens / seconds
        flops = per_second * self.flops_per_token
        total_peak = self.peak.flops_per_second * self.num_devices
        return Rates(
            tokens_per_second=per_second,
            tflops=flops / self.num_devices / TERA,
            mfu=mfu(per_second, self.flops_per_token, total_peak),
        )

    def describe(self) -> str:
        """The formula with this run's numbers, to be printed once at the start."""
        return (
            f"{MFU_FORMULA}; here flops_per_token = {self.flops_per_token:.4g}, "
            f"peak_flops_per_second = {self.num_devices} x {self.peak.flops_per_second:.4g} "
            f"({self.peak.source})"
        )
