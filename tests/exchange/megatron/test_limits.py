"""What cannot be imported from a GPTModel is refused by name, one line each."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from roots.config.model import ModelConfig
from roots.exchange.megatron.arguments import _MAPPED, differing_fields, megatron_model
from roots.exchange.megatron.limits import _ARGUMENTS, refused_arguments, refused_fields

ROPE = {"position_embedding_type": "rope"}
SWIGLU = {"swiglu": True}
OFF = "must be one of False, None"
EXPERTS = {
    "num_experts": 8,
    "num_layers": 4,
    "add_bias_linear": False,
    "normalization": "RMSNorm",
}
EVERY = "must give experts to layers N, 2 N, 3 N, ... (from 1) of one N, and to no others"
EVEN = "must leave an even number of dimensions to rotate"
# Of the parser of Megatron-LM; all others are fields of megatron-core's TransformerConfig.
PARSED = {
    "position_embedding_type", "num_experts", "rotary_seq_len_interpolation_factor",
    "squared_relu", "quick_geglu", "heterogeneous_layers_config_path", "spec",
    "group_query_attention", "max_position_embeddings", "rotary_base", "rotary_percent",
    "use_rope_scaling", "rope_scaling_factor", "norm_epsilon",
    "apply_layernorm_1p", "swiglu", "bias_gelu_fusion", "untie_embeddings_and_output_weights",
}  # fmt: skip


def _refused(arguments: dict[str, Any]) -> list[tuple[str, object, str]]:
    return [(item.key, item.value, item.rule) for item in refused_arguments(arguments)]


@pytest.mark.parametrize(
    "name, value, rule, beside",
    [
        ("position_embedding_type", "yarn", "must be one of learned_absolute, rope, none", {}),
        ("normalization", "DyT", "must be one of LayerNorm, RMSNorm", {}),
        ("add_bias_linear", False, "must be True beside LayerNorm", {}),
        ("add_bias_linear", True, "must be False beside num_experts", EXPERTS),
        ("moe_layer_freq", 2, EVERY, EXPERTS),
        ("moe_layer_freq", [0, 1, 1, 0], EVERY, EXPERTS),
        ("moe_layer_freq", [0, 0, 0, 0], EVERY, EXPERTS),
        ("moe_router_load_balancing_type", "sinkhorn", "must not be sinkhorn", EXPERTS),
        ("moe_router_load_balancing_type", ["sinkhorn"], "must not be sinkhorn", EXPERTS),
        ("moe_router_score_function", "sigmoid", "must be softmax", EXPERTS),
        ("moe_router_topk_scaling_factor", 2.5, "must be one of None, 1.0", EXPERTS),
        ("moe_router_num_groups", 2, "must be None", EXPERTS),
        ("moe_router_topk_limited_devices", 2, "must be None", EXPERTS),
        ("moe_router_enable_expert_bias", True, OFF, EXPERTS),
        ("moe_router_force_load_balancing", True, OFF, EXPERTS),
        ("moe_expert_capacity_factor", 1.25, "must be None", EXPERTS),
        ("moe_apply_probs_on_input", True, OFF, EXPERTS),
        ("moe_latent_size", 64, "must be None", EXPERTS),
        ("mtp_num_layers", 1, "must be one of None, 0", {}),
        ("multi_latent_attention", True, OFF, {}),
        ("experimental_attention_variant", "dsa", "must be None", {}),
        ("attention_output_gate", True, OFF, {}),
        ("softmax_type", "learnable", "must be vanilla", {}),
        ("qk_l2_norm", True, OFF, {}),
        ("window_size", (4, 2), "must end with 0, at the token itself", {}),
        ("window_attn_skip_freq", 2, "must be None", {"window_size": (4, 0)}),
        ("rotary_interleaved", True, OFF, ROPE),
        ("no_rope_freq", 4, "must be one of None, 0", ROPE),
        ("rotary_percent", 0.25, EVEN, {**ROPE, "hidden_size": 40, "num_attention_heads": 2}),
        ("rotary_percent", 0.5, EVEN, {**ROPE, "kv_channels": 14}),
        (
            "rotary_seq_len_interpolation_factor",
            2,
            "must be None or 1 beside use_rope_scaling",
            {**ROPE, "use_rope_scaling": True},
        ),
        ("squared_relu", True, OFF, {}),
        ("quick_geglu", True, OFF, {}),
        ("glu_linear_offset", 1.0, "must be one of 0, None", SWIGLU),
        ("activation_func_clamp_value", 7.0, "must be None", SWIGLU),
        ("use_te_activation_func", True, OFF, {}),
        ("is_hybrid_model", True, OFF, {}),
        ("heterogeneous_layers_config_path", "layers.json", "must be None", {}),
        ("spec", ["mine", "spec"], "must be None", {}),
    ],
)
def test_an_argument_without_a_field_is_refused(
    name: str, value: object, rule: str, beside: dict[str, Any]
) -> None:
    assert _refused(beside) == []
    assert _refused({**beside, name: value}) == [(name, value, rule)]


@pytest.mark.parametrize(
    "harmless",
    [
        {"rotary_interleaved": True, "no_rope_freq": 2},
        {"rotary_percent": 0.25, "kv_channels": 20},
        {"rotary_percent": 0.5, "kv_channels": 20, **ROPE},
        {"window_attn_skip_freq": 2, "window_size": (-1, -1)},
        {"activation_func_clamp_value": 7.0, "glu_linear_offset": 1.0},
        {"use_te_activation_func": True, **SWIGLU},
        {"add_bias_linear": False, "normalization": "RMSNorm"},
        {**EXPERTS, "moe_layer_freq": 1},
        {**EXPERTS, "moe_layer_freq": [0, 1, 0, 1]},
        {**EXPERTS, "moe_layer_freq": [0, 0, 1, 0]},
        {**EXPERTS, "moe_router_load_balancing_type": ["seq_aux_loss"]},
        {"moe_router_score_function": "sigmoid", "moe_layer_freq": 3, "num_experts": None},
        {"openai_gelu": True, "apply_residual_connection_post_layernorm": True},
    ],
)
def test_what_changes_no_number_is_not_refused(harmless: dict[str, Any]) -> None:
    assert _refused(harmless) == []


def _llama3(**changed: float) -> dict[str, Any]:
    scaling = {"kind": "llama3", "factor": 8.0, "original_length": 8192, **changed}
    return {"position": "rotary", "rotary_scaling": scaling}


def test_the_scaling_that_gpt_model_has_is_not_refused() -> None:
    assert refused_fields(ModelConfig(**{"vocab_size": 96, **_llama3()}), 96) == []


def test_the_tables_name_what_megatron_has() -> None:
    transformer = pytest.importorskip("megatron.core.transformer.transformer_config")
    fields = {field.name for field in dataclasses.fields(transformer.TransformerConfig)}
    names = {limit.name for limit in _ARGUMENTS} | {name for row in _MAPPED for name in row.names}
    assert names - fields == PARSED


@pytest.mark.parametrize(
    "changed, key, rule",
    [
        ({"architecture": "encoder"}, "architecture", "must be decoder"),
        ({"position": "alibi"}, "position", "must be one of learned, rotary, none"),
        ({"position": "sinusoidal"}, "position", "must be one of learned, rotary, none"),
        ({"position": "relative"}, "position", "must be one of learned, rotary, none"),
        (
            {"position": "rotary", "rotary_scaling": {"kind": "ntk", "factor": 2}},
            "rotary_scaling.kind",
            "must be one of none, linear, llama3",
        ),
        ({"position": "rotary", "head_dim": 20, "rotary_fraction": 0.25}, "rotary_fraction", EVEN),
        (_llama3(original_length=4096), "rotary_scaling.original_length", "must be 8192"),
        (_llama3(low_frequency=2.0), "rotary_scaling.low_frequency", "must be 1.0"),
        (_llama3(high_frequency=8.0), "rotary_scaling.high_frequency", "must be 4.0"),
        ({"parallel_residual": True}, "parallel_residual", "must be False"),
        ({"norm_position": "post"}, "norm_position", "must be pre"),
        ({"bias": False}, "bias", "must be True beside layer_norm"),
        ({"embedding_scale": 16.0}, "embedding_scale", "must be 1.0"),
        ({"embedding_norm": True}, "embedding_norm", "must be False"),
        ({"token_types": 2}, "token_types", "must be 0"),
        ({"head_transform": True}, "head_transform", "must be False"),
        ({"head_bias": True}, "head_bias", "must be False"),
        ({"head_scale": 0.5}, "head_scale", "must be 1.0"),
        (
            {"norm": "rms_norm", "moe": {"num_experts": 4}},
            "bias",
            "must be False beside model.moe.num_experts",
        ),
        ({"vocab_size": 97}, "vocab_size", "must be at most 96, the rows of the stored table"),
    ],
)
def test_a_field_without_tensors_or_counterpart_is_refused(
    changed: dict[str, Any], key: str, rule: str
) -> None:
    assert refused_fields(ModelConfig(vocab_size=96), 96) == []
    found = refused_fields(ModelConfig(**{"vocab_size": 96, **changed}), 96)
    assert [(item.key, item.rule) for item in found] == [(key, rule)]


def test_a_model_agrees_with_the_arguments_it_was_read_from() -> None:
    """Null, given or resolved: head size, groups and MLP width stand for the same model."""
    arguments = {
        "hidden_size": 48, "num_layers": 2, "num_attention_heads": 6, "kv_channels": None,
        "group_query_attention": False, "num_query_groups": 1, "ffn_hidden_size": 192,
        "use_rope_scaling": True, "rope_scaling_factor": 4.0, "window_size": [7, 0],
        "layernorm_epsilon": 1e-3, **ROPE,
    }  # fmt: skip
    model = ModelConfig(**megatron_model(arguments, 96))
    assert model.rotary_scaling.kind == "llama3"
    assert (model.window, model.norm_epsilon) == (8, 1e-3)
    assert list(differing_fields(model, arguments)) == []
    other = model.model_copy(update={"num_kv_heads": 2, "window": 7, "init_std": 1.0})
    assert [item.key for item in differing_fields(other, arguments)] == ["num_kv_heads", "window"]


def test_experts_agree_with_the_arguments_they_were_read_from() -> None:
    """Null, given or resolved: widths and weights that follow from others are the same model."""
    arguments = {
        **EXPERTS, "hidden_size": 48, "num_attention_heads": 6, "ffn_hidden_size": 100,
        "moe_layer_freq": [0, 1, 0, 1], "moe_router_topk": 3, "moe_router_pre_softmax": False,
        "moe_shared_expert_intermediate_size": 60, "moe_shared_expert_gate": True,
        "moe_aux_loss_coeff": [0.01, 0.5], "moe_z_loss_coeff": None,
    }  # fmt: skip
    model = ModelConfig(**megatron_model(arguments, 96))
    assert (model.moe.every, model.moe.top_k, model.expert_ffn_size) == (2, 3, 100)
    assert (model.moe.normalises, model.shared_ffn_size, model.moe.balance_loss) == (True, 60, 0.01)
    assert list(differing_fields(model, arguments)) == []
    same = {"normalise_weights": None, "ffn_hidden_size": None, "z_loss": 0.1}
    two = {"num_shared_experts": 2, "shared_ffn_hidden_size": 30}
    equal = model.model_copy(update={"moe": model.moe.model_copy(update={**same, **two})})
    assert list(differing_fields(equal, arguments)) == []
    changed = {"top_k": 2, "normalise_weights": False, "every": 1, "shared_expert_gate": False}
    other = model.model_copy(update={"moe": model.moe.model_copy(update=changed)})
    assert [item.key for item in differing_fields(other, arguments)] == [
        "moe.top_k",
        "moe.every",
        "moe.normalise_weights",
        "moe.shared_expert_gate",
    ]


def test_the_width_of_an_mlp_that_no_layer_has_is_not_compared() -> None:
    arguments = {**EXPERTS, "hidden_size": 48, "ffn_hidden_size": 100, "moe_ffn_hidden_size": 24}
    model = ModelConfig(**megatron_model({**arguments, "num_attention_heads": 6}, 96))
    assert model.expert_ffn_size == 24
    assert list(differing_fields(model, arguments)) == []


@pytest.mark.parametrize(
    ("kind", "weight"), [("none", 0.0), (["none"], 0.0), ("seq_aux_loss", 0.5), (None, 0.5)]
)
def test_experts_that_nothing_balanced_are_not_balanced_from_now_on(
    kind: object, weight: float
) -> None:
    arguments = {**EXPERTS, "moe_router_load_balancing_type": kind, "moe_aux_loss_coeff": 0.5}
    assert megatron_model(arguments, 96)["moe"]["balance_loss"] == weight


@pytest.mark.parametrize("name", ["apply_layernorm_1p", "layernorm_zero_centered_gamma"])
def test_norms_around_zero_have_two_names(name: str) -> None:
    arguments = {"hidden_size": 48, "num_layers": 2, "num_attention_heads": 6, name: True}
    assert megatron_model(arguments, 96)["norm_zero_centred"]
    found = [
        item
        for item in differing_fields(ModelConfig(hidden_size=48, num_layers=2), arguments)
        if item.key == "norm_zero_centred"
    ]
    assert [item.rule for item in found] == [
        f"must be True, as the stored arguments have {name}=True"
    ]


def test_absent_arguments_are_not_compared() -> None:
    assert list(differing_fields(ModelConfig(activation="relu", window=3), {})) == []
