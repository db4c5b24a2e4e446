"""What counts as another model: values, not whether a default was spelled out."""

from __future__ import annotations

from typing import Any

import pytest

from roots.config.model import ModelConfig
from roots.training.resuming import _resolved_fields

PAIR = {"architecture": "encoder_decoder", "num_layers": 3, "sequence_length": 64}
MOE = {"num_experts": 4, "num_shared_experts": 1}


@pytest.mark.parametrize(
    ("short", "spelled"),
    [
        ({}, {"num_kv_heads": 4, "head_dim": 64, "qkv_bias": True, "ffn_hidden_size": 1024}),
        (PAIR, {**PAIR, "num_encoder_layers": 3, "source_length": 64}),
        (
            {"moe": MOE},
            {
                "moe": {
                    **MOE,
                    "ffn_hidden_size": 1024,
                    "shared_ffn_hidden_size": 1024,
                    "normalise_weights": True,
                }
            },
        ),
    ],
    ids=["decoder", "pair", "experts"],
)
def test_default_and_its_value_are_one_model(
    short: dict[str, Any], spelled: dict[str, Any]
) -> None:
    first, second = (dict(_resolved_fields(ModelConfig(**tree))) for tree in (short, spelled))
    assert first == second
    other = dict(_resolved_fields(ModelConfig(**{**short, "hidden_size": 512})))
    assert other != first
