"""Rates of a step and the line that explains them."""

from __future__ import annotations

import numpy as np
import pytest

from roots.config.model import ModelConfig
from roots.data.batch import Batch
from roots.data.objectives.rows import sequence_batch
from roots.planner.flops import training_flops_per_token
from roots.training.callbacks.peak import Peak
from roots.training.callbacks.throughput import Throughput

DECODER = ModelConfig()
TRANSLATOR = ModelConfig(architecture="encoder_decoder", sequence_length=64, source_length=96)


def batch(source_length: int, length: int) -> Batch:
    """Two short pairs padded to these lengths."""
    source, target = (np.ones(min(n, 3), dtype=np.int64) for n in (source_length, length))
    shape = (source_length, length)
    return sequence_batch([source] * 2, [target] * 2, [0, 0], begin=0, shape=shape)


def test_rates_of_a_step_of_full_rows() -> None:
    throughput = Throughput(DECODER, Peak(1e10, "a device"), num_devices=4)
    length, flops = DECODER.sequence_length, training_flops_per_token(DECODER)
    # With its batches, or on a stage of a pipeline that reads none.
    for micro_batches in ([batch(0, length)] * 3, []):
        rates = throughput.rates(8, micro_batches, seconds=2.0)
        assert rates.tokens_per_second == 4 * length
        assert rates.tflops == pytest.approx(flops * 4 * length / 4 / 1e12)
        assert rates.mfu == pytest.approx(flops * 4 * length / 4e10)


def test_rates_count_the_lengths_that_a_step_is_padded_to() -> None:
    """Padding that pad_multiple leaves out is neither tokens nor work."""
    throughput = Throughput(TRANSLATOR, Peak(1e10, "a device"), num_devices=2)
    rates = throughput.rates(8, [batch(24, 16)] * 2, seconds=0.5)
    short = TRANSLATOR.model_copy(update={"sequence_length": 16, "source_length": 24})
    flops = training_flops_per_token(short)
    assert flops < training_flops_per_token(TRANSLATOR)
    assert rates.tokens_per_second == 8 * 16 / 0.5
    assert rates.tflops == pytest.approx(flops * 8 * 16 / 0.5 / 2 / 1e12)
    assert rates.mfu == pytest.approx(flops * 8 * 16 / 0.5 / 2e10)


def test_mfu_is_achieved_tflops_over_peak() -> None:
    throughput = Throughput(DECODER, Peak(3.3e11, "a device"), num_devices=8)
    rates = throughput.rates(32, [], seconds=0.37)
    assert rates.mfu == pytest.approx(rates.tflops * 1e12 / 3.3e11)


def test_more_devices_at_the_same_speed_are_used_less() -> None:
    one = Throughput(DECODER, Peak(1e10, "a device"), num_devices=1).rates(1000, [], 1.0)
    two = Throughput(DECODER, Peak(1e10, "a device"), num_devices=2).rates(1000, [], 1.0)
    assert one.tokens_per_second == two.tokens_per_second
    assert one.mfu == pytest.approx(2 * two.mfu)


def test_description_says_what_mfu_is_measured_against() -> None:
    line = Throughput(DECODER, Peak(2.5e11, "Some CPU, fp32, measured"), 2).describe()
    flops = f"{training_flops_per_token(DECODER):.4g}"
    assert line == (
        f"{flops} FLOPs a token; MFU 100% is 2 x 0.25 TFLOP/s (Some CPU, fp32, measured)"
    )
