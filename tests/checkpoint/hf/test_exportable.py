"""Which models an export takes: whatever stands in fields that they do not read."""

from __future__ import annotations

from typing import Any

import pytest

from roots.checkpoint.hf.registry import choose_family
from roots.config.idle import idle_fields, with_fields
from roots.config.model import ModelConfig

LLAMA: dict[str, Any] = {
    "position": "rotary",
    "norm": "rms_norm",
    "activation": "swiglu",
    "bias": False,
}
MIXTRAL: dict[str, Any] = {**LLAMA, "moe": {"num_experts": 4, "ffn_hidden_size": 96}}
T5: dict[str, Any] = {
    "architecture": "encoder_decoder",
    "position": "relative",
    "norm": "rms_norm",
    "activation": "relu",
    "bias": False,
    "attention_scale": 1.0,
    "head_scale": 256**-0.5,
}
BERT: dict[str, Any] = {
    "architecture": "encoder",
    "norm_position": "post",
    "embedding_norm": True,
    "head_transform": True,
    "head_bias": True,
}
# The architecture, its model, and fields of it that nothing reads.
IDLE: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("GPT2LMHeadModel", {}, {"rotary_base": 5.0, "rotary_fraction": 0.5}),
    ("GPT2LMHeadModel", {}, {"rotary_scaling.original_length": 99, "moe.top_k": 7}),
    ("GPT2LMHeadModel", {}, {"rotary_scaling.kind": "yarn", "source_length": 9}),
    ("LlamaForCausalLM", LLAMA, {"relative_buckets": 64, "relative_max_distance": 500}),
    ("LlamaForCausalLM", LLAMA, {"moe.num_shared_experts": 2, "moe.every": 3}),
    ("MixtralForCausalLM", MIXTRAL, {"ffn_hidden_size": 1000}),
    ("MixtralForCausalLM", MIXTRAL, {"moe.shared_ffn_hidden_size": 8, "relative_buckets": 8}),
    ("T5ForConditionalGeneration", T5, {"rotary_scaling.factor": 3.0, "rotary_fraction": 0.5}),
    ("BertForMaskedLM", BERT, {"relative_buckets": 64, "num_encoder_layers": 3}),
]


@pytest.mark.parametrize(("architecture", "fields", "idle"), IDLE)
def test_idle_fields_change_nothing_in_an_export(
    architecture: str, fields: dict[str, Any], idle: dict[str, Any]
) -> None:
    model = ModelConfig(**fields)
    changed = with_fields(model, idle)
    assert set(idle) <= idle_fields(model)
    family, tree = choose_family(changed)
    assert family.architecture == architecture
    assert (family, tree) == choose_family(model)


def test_width_of_experts_is_the_one_in_config_json() -> None:
    assert choose_family(ModelConfig(**MIXTRAL))[1]["intermediate_size"] == 96
    of_dense = {**MIXTRAL, "moe": {"num_experts": 4}, "ffn_hidden_size": 64}
    assert choose_family(ModelConfig(**of_dense))[1]["intermediate_size"] == 64
