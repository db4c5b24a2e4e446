"""Stretches of rotary positions that other readers know under other names."""

from __future__ import annotations

import pytest
import torch

from roots.config.model import ModelConfig
from roots.exchange.hf.rotary_map import Rotary
from roots.models.attention.rotary import rotary_frequencies


@pytest.mark.parametrize("head_dim", [8, 64])
def test_ntk_stretch_leaves_as_the_base_of_the_same_frequencies(head_dim: int) -> None:
    fields = {"position": "rotary", "head_dim": head_dim, "rotary_base": 5000.0}
    model = ModelConfig(**fields, rotary_scaling={"kind": "ntk", "factor": 4.0})
    written = Rotary().write(model)
    base = written["rope_theta"]
    assert written["rope_parameters"]["rope_theta"] == base > 4 * 5000.0
    plain = ModelConfig(**{**fields, "rotary_base": base})
    torch.testing.assert_close(rotary_frequencies(plain), rotary_frequencies(model))
