"""What is foretold to overflow in fp16 does so there, at that site and not before."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from roots.inspection.hooks import largest_values
from roots.inspection.overflow import FP16_LARGEST, overflow_summary, overflows
from roots.models.decoder import Decoder
from tests.helpers.decoders import random_inputs, small_decoder, small_model


def largest_of(decoder: Decoder) -> dict[str, torch.Tensor]:
    with torch.no_grad(), largest_values(decoder) as largest:
        decoder(*random_inputs(decoder.model)[:3])
    return dict(largest)


def scaled(parameter: str, factor: float, **changes: Any) -> Decoder:
    decoder = small_decoder(small_model(init_std=0.2, **changes)).eval()
    with torch.no_grad():
        decoder.get_parameter(parameter).mul_(factor)
    return decoder


def half_of(decoder: Decoder) -> Decoder:
    """The same model as a run in fp16 has it."""
    half = small_decoder(decoder.model, dtype=torch.float16).eval()
    half.load_state_dict(decoder.state_dict())
    return half


@pytest.mark.parametrize(
    "parameter, factor, site",
    [
        ("layers.1.mlp.up.weight", 3e4, "layers.1.mlp.up"),
        ("layers.0.mlp.down.weight", 3e4, "layers.0.mlp.down"),
        ("layers.1.attention.qkv.weight", 5e4, "layers.1.attention.qkv"),
        ("layers.1.attention_norm.weight", 6e4, "layers.1.attention_norm"),
    ],
)
def test_fp16_is_infinite_where_the_report_says(parameter: str, factor: float, site: str) -> None:
    decoder = scaled(parameter, factor)
    found = overflow_summary(largest_of(decoder))
    assert found["overflows"][0] == site
    half = largest_of(half_of(decoder))
    infinite = [each for each, value in half.items() if not value.isfinite()]
    assert infinite[0] == site
    assert overflow_summary(half)["overflows"] == infinite


def test_bias_that_is_added_later_counts_where_it_belongs() -> None:
    decoder = small_decoder(small_model(init_std=0.2)).eval()
    with torch.no_grad():
        decoder.layers[0].mlp.up.bias[3] = 7e4
    assert overflow_summary(largest_of(decoder))["overflows"][0] == "layers.0.mlp.up"


def test_model_in_order_is_told_to_be_in_order() -> None:
    decoder = small_decoder(small_model(init_std=0.2)).eval()
    found = overflow_summary(largest_of(decoder))
    assert found["overflows"] == found["close"] == []
    assert found["limit"] == FP16_LARGEST
    half = largest_of(half_of(decoder))
    assert all(value.isfinite() for value in half.values())
    for row in found["sites"]:
        assert row["share"] == pytest.approx(row["largest"] / 65504)


def test_scores_that_are_stored_are_a_site() -> None:
    """Under ALiBi a product of queries and keys is stored before it is scaled."""
    decoder = scaled("layers.0.attention.qkv.weight", 400.0, position="alibi")
    found = overflow_summary(largest_of(decoder))
    assert found["overflows"][0] == "layers.0.attention scores"
    half = largest_of(half_of(decoder))
    first = next(each for each, value in half.items() if not value.isfinite())
    assert first in ("layers.0.attention.output", "layers.0.attention scores")
    plain = largest_of(scaled("layers.0.attention.qkv.weight", 400.0))
    assert not any(site.endswith("scores") for site in plain)


@pytest.mark.parametrize("value", [65504.0, 65519.0, 65520.0, 7e4, float("inf"), float("nan")])
def test_limit_is_where_rounding_gives_infinity(value: float) -> None:
    assert overflows(value) == (not torch.tensor(value).half().isfinite())


def test_what_comes_near_is_told() -> None:
    found = overflow_summary({"a": torch.tensor(20000.0), "b": torch.tensor(16000.0)})
    assert found["close"] == ["a"]
    infinite = overflow_summary({"a": torch.tensor(float("inf"))})
    assert infinite["overflows"] == ["a"]
