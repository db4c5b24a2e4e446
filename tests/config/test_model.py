"""What null stands for in `model`, and which blocks have experts."""

from __future__ import annotations

from typing import Any

import pytest

from roots.config.model import ModelConfig


def model(**fields: Any) -> ModelConfig:
    return ModelConfig(**{"hidden_size": 768, "num_heads": 12, "num_layers": 6, **fields})


@pytest.mark.parametrize(
    "fields, width",
    [
        ({}, 3072),
        ({"activation": "relu"}, 3072),
        # Two thirds of it, so that three matrices weigh what two did, up to a multiple of 64.
        ({"activation": "swiglu"}, 2048),
        ({"activation": "geglu", "hidden_size": 780}, 2112),
        ({"activation": "swiglu", "ffn_hidden_size": 100}, 100),
    ],
)
def test_inner_width_is_of_as_many_parameters_with_a_gate(
    fields: dict[str, Any], width: int
) -> None:
    assert model(**fields).ffn_size == width


def test_heads_and_biases_follow_the_fields_beside_them() -> None:
    assert (model().head_size, model(head_dim=80).head_size) == (64, 80)
    assert (model().kv_heads, model(num_kv_heads=4).kv_heads) == (12, 4)
    assert (model(bias=False).has_qkv_bias, model(bias=False, qkv_bias=True).has_qkv_bias) == (
        False,
        True,
    )
    assert model(rotary_fraction=0.3).rotary_size == 18
    assert model(vocab_size=50257, vocab_multiple=128).padded_vocab_size == 50304


def test_experts_are_in_every_nth_block_from_the_nth_on() -> None:
    layers = range(6)
    every = {n: model(moe={"num_experts": 4, "every": n}) for n in (1, 2, 3)}
    assert [layer for layer in layers if every[1].has_experts(layer)] == [*layers]
    assert [layer for layer in layers if every[2].has_experts(layer)] == [1, 3, 5]
    assert [layer for layer in layers if every[3].has_experts(layer)] == [2, 5]
    assert not any(model().has_experts(layer) for layer in layers)


def test_weights_of_several_experts_sum_to_one_unless_told() -> None:
    experts = {"num_experts": 4}
    for top_k, told, normalises in ((1, None, False), (2, None, True), (1, True, True)):
        moe = {**experts, "top_k": top_k, "normalise_weights": told}
        assert model(moe=moe).moe.normalises == normalises
