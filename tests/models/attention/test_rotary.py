"""Stretched rotary frequencies: against transformers' and against what the formulas promise."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from roots.models.attention.rotary import rotary_frequencies
from tests.helpers.decoders import small_model

KINDS: list[dict[str, Any]] = [
    {"kind": "none"},
    {"kind": "linear", "factor": 4.0},
    {"kind": "yarn", "factor": 4.0, "original_length": 64},
    {"kind": "yarn", "factor": 8.0, "original_length": 2048, "beta_fast": 16.0, "beta_slow": 2.0},
    {"kind": "yarn", "factor": 2.0, "original_length": 512, "attention_factor": 0.8},
    {"kind": "llama3", "factor": 8.0, "original_length": 128},
    {
        "kind": "llama3",
        "factor": 32.0,
        "original_length": 8192,
        "low_frequency": 0.5,
        "high_frequency": 8.0,
    },
]


def model_of(scaling: dict[str, Any], base: float = 10000.0) -> Any:
    return small_model(hidden_size=256, position="rotary", rotary_base=base, rotary_scaling=scaling)


@pytest.mark.parametrize("base", [10000.0, 500000.0])
@pytest.mark.parametrize("scaling", KINDS, ids=lambda scaling: scaling["kind"])
def test_frequencies_and_amplitude_are_those_of_transformers(
    scaling: dict[str, Any], base: float
) -> None:
    transformers = pytest.importorskip(
        "transformers", reason="compares with Hugging Face transformers, which is not installed"
    )
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    names = {
        "factor": "factor",
        "original_length": "original_max_position_embeddings",
        "low_frequency": "low_freq_factor",
        "high_frequency": "high_freq_factor",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "attention_factor": "attention_factor",
    }
    model = model_of(scaling, base)
    kind = scaling["kind"]
    given = model.rotary_scaling.model_dump()
    parameters = {theirs: given[ours] for ours, theirs in names.items() if given[ours] is not None}
    rope = {"rope_type": "default" if kind == "none" else kind, "rope_theta": base, **parameters}
    config = transformers.LlamaConfig(
        hidden_size=256, num_attention_heads=4, rope_parameters=rope, max_position_embeddings=4096
    )
    if kind == "none":
        expected = 1.0 / base ** (torch.arange(0, 64, 2).double() / 64)
        amplitude = 1.0
    else:
        expected, amplitude = ROPE_INIT_FUNCTIONS[kind](config)
    torch.testing.assert_close(rotary_frequencies(model), expected.double(), rtol=1e-6, atol=0)
    assert model.rotary_scaling.amplitude == pytest.approx(amplitude)


def test_ntk_keeps_the_fastest_dim_and_stretches_the_slowest_by_the_factor() -> None:
    plain = rotary_frequencies(model_of({"kind": "none"}))
    stretched = rotary_frequencies(model_of({"kind": "ntk", "factor": 8.0}))
    assert stretched[0] == plain[0]
    torch.testing.assert_close(stretched[-1], plain[-1] / 8.0)
    ratios = plain / stretched
    assert bool((ratios.diff() > 0).all())
