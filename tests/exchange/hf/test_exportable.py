"""Which models an export takes, whatever their idle fields say, and how it refuses the others."""

from __future__ import annotations

from typing import Any

import pytest

from roots.config.model import ModelConfig
from roots.config.unread_fields import idle_fields, with_fields
from roots.errors import RootsError
from roots.exchange.hf.registry import choose_family

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


def experts(**fields: Any) -> dict[str, Any]:
    """A Mixtral with other fields of the section `moe`."""
    return {**MIXTRAL, "moe": {**MIXTRAL["moe"], **fields}}


# A model, and for every line of its refusal: field, value, architecture, the value wanted.
REFUSED: list[tuple[dict[str, Any], list[tuple[str, object, str, str]]]] = [
    (
        experts(num_shared_experts=2, shared_ffn_hidden_size=48),
        [("moe.num_shared_experts", 2, "MixtralForCausalLM", "0")],
    ),
    (
        experts(every=2, num_shared_experts=1),
        [("moe.shared_expert_gate", False, "Qwen2MoeForCausalLM", "true")],
    ),
    (
        experts(every=2, top_k=1),
        [("qk_norm", False, "Qwen3MoeForCausalLM", "true")],
    ),
    (
        {**experts(num_shared_experts=1, shared_expert_gate=True), "qk_norm": True},
        [("moe.num_shared_experts", 1, "Qwen3MoeForCausalLM", "0")],
    ),
    (
        {**experts(top_k=1), "qk_norm": True, "window": 8},
        [("window", 8, "Qwen3MoeForCausalLM", "null")],
    ),
    (
        {"moe": {"num_experts": 4}},
        [
            ("position", "learned", "MixtralForCausalLM", "rotary"),
            ("norm", "layer_norm", "MixtralForCausalLM", "rms_norm"),
            ("bias", True, "MixtralForCausalLM", "false"),
            ("activation", "gelu", "MixtralForCausalLM", "swiglu"),
        ],
    ),
    (
        {**LLAMA, "rotary_fraction": 0.5},
        [("rotary_fraction", 0.5, "LlamaForCausalLM", "1.0")],
    ),
    ({**LLAMA, "qk_norm": True, "bias": True}, [("qk_norm", True, "LlamaForCausalLM", "false")]),
    ({"position": "alibi"}, [("position", "alibi", "GPT2LMHeadModel", "learned")]),
    ({"norm_zero_centred": True}, [("norm_zero_centred", True, "GPT2LMHeadModel", "false")]),
    (
        {**T5, "position": "learned"},
        [("position", "learned", "T5ForConditionalGeneration", "relative")],
    ),
    ({**BERT, "norm": "rms_norm"}, [("norm", "rms_norm", "BertForMaskedLM", "layer_norm")]),
]


@pytest.mark.parametrize(("fields", "expected"), REFUSED)
def test_refusals_name_fields_of_the_user_and_an_architecture_of_that_kind(
    fields: dict[str, Any], expected: list[tuple[str, object, str, str]]
) -> None:
    with pytest.raises(RootsError) as caught:
        choose_family(ModelConfig(**fields))
    assert caught.value.lines == tuple(
        f"model.{name}={value!r}: must be {wanted} for {architecture}; "
        f"train with model.{name}={wanted} to export the model"
        for name, value, architecture, wanted in expected
    )


def test_refusal_of_a_value_that_follows_from_another_names_both() -> None:
    with pytest.raises(RootsError) as caught:
        choose_family(ModelConfig(**{**T5, "head_scale": 1.0}))
    assert caught.value.lines == (
        "model.head_scale=1.0: must be 0.0625 with model.tied_embeddings=true for "
        "T5ForConditionalGeneration; train with model.head_scale=0.0625 to export the model",
    )


def test_shared_experts_are_one_of_their_joint_width() -> None:
    shared = experts(num_shared_experts=3, shared_ffn_hidden_size=20, shared_expert_gate=True)
    family, tree = choose_family(ModelConfig(**shared))
    assert family.architecture == "Qwen2MoeForCausalLM"
    assert tree["shared_expert_intermediate_size"] == 60
    assert (tree["moe_intermediate_size"], tree["norm_topk_prob"], tree["qkv_bias"]) == (
        96,
        True,
        False,
    )


def test_how_experts_were_trained_keeps_them_from_no_export() -> None:
    """Nothing is dropped outside training, and router losses are no part of the output."""
    trained = experts(capacity_factor=1.25, z_loss=0.1, balance_loss=0.02)
    family, tree = choose_family(ModelConfig(**trained))
    assert family.architecture == "MixtralForCausalLM"
    assert tree["router_aux_loss_coef"] == 0.02
