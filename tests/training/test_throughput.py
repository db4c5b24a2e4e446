"""Rates of a step and the line that explains them."""

from __future__ import annotations

import pytest

from roots.config.model import ModelConfig
from roots.planner.flops import MFU_FORMULA, training_flops_per_token
from roots.training.peak import Peak
from roots.training.throughput import Throughput


def test_rates_of_a_step() -> None:
    throughput = Throughput(2_000_000, Peak(1e10, "a device"), num_devices=4)
    rates = throughput.rates(tokens=8000, seconds=2.0)
    assert rates.tokens_per_second == 4000.0
    assert rates.tflops == pytest.approx(8e9 / 4 / 1e12)
    assert rates.mfu == pytest.approx(8e9 / 4e10)


def test_mfu_is_achieved_tflops_over_peak() -> None:
    flops = training_flops_per_token(ModelConfig())
    throughput = Throughput(flops, Peak(3.3e11, "a device"), num_devices=8)
    rates = throughput.rates(tokens=32 * 256, seconds=0.37)
    assert rates.mfu == pytest.approx(rates.tflops * 1e12 / 3.3e11)


def test_more_devices_at_the_same_speed_are_used_less() -> None:
    one = Throughput(10**6, Peak(1e10, "a device"), num_devices=1).rates(1000, 1.0)
    two = Throughput(10**6, Peak(1e10, "a device"), num_devices=2).rates(1000, 1.0)
    assert one.tokens_per_second == two.tokens_per_second
    assert one.mfu == pytest.approx(2 * two.mfu)


def test_description_holds_formula_and_numbers() -> None:
    line = Throughput(123_456_789, Peak(2.5e11, "Some CPU, fp32, measured"), 2).describe()
    assert line == (
        f"{MFU_FORMULA}; here flops_per_token = 1.235e+08, "
        "peak_flops_per_second = 2 x 2.5e+11 (Some CPU, fp32, measured)"
    )
