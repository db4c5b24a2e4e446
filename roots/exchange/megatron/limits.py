"""What of a GPTModel has no counterpart in ROOTS, and what of ROOTS has none there: two tables.

Names of arguments are those of Megatron-LM and of TransformerConfig in megatron-core 0.16.1. Left
out are those that its forward pass ignores (openai_gelu, apply_residual_connection_post_layernorm),
that cancel out (apply_query_key_layer_scaling), or that change precision or training alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from roots.config.model import ModelConfig
from roots.exchange.hf.config_map import Refusal

Arguments = Mapping[str, Any]
Condition = Callable[[Mapping[str, Any]], bool]


def always(_: Arguments) -> bool:
    """The condition of what matters in every model."""
    return True


def rotates(arguments: Arguments) -> bool:
    """Whether positions are rotary."""
    return arguments.get("position_embedding_type") == "rope"


def routes(arguments: Arguments) -> bool:
    """Whether some layers have experts."""
    return bool(arguments.get("num_experts"))


def layers_with_experts(arguments: Arguments) -> list[bool]:
    """Of every layer whether it has experts: moe_layer_freq is a pattern, or N for one in N, the
    first of them. None is known without num_layers."""
    layers, given = arguments.get("num_layers") or 0, arguments.get("moe_layer_freq") or 1
    if isinstance(given, int):
        return [index % given == 0 for index in range(layers)]
    return [bool(each) for each in given]


def experts_every(arguments: Arguments) -> int | None:
    """N where layers number N, 2 N, ... (from 1) have experts and no others; None if none fits."""
    pattern = layers_with_experts(arguments)
    every = pattern.index(True) + 1 if any(pattern) else 1
    fits = pattern == [(index + 1) % every == 0 for index in range(len(pattern))]
    return every if fits else None


def _at_other_layers(arguments: Arguments) -> bool:
    return routes(arguments) and experts_every(arguments) is None


def _balanced_by_sinkhorn(arguments: Arguments) -> bool:
    return routes(arguments) and "sinkhorn" in str(arguments["moe_router_load_balancing_type"])


def _gated(arguments: Arguments) -> bool:
    return bool(arguments.get("swiglu") or arguments.get("quick_geglu"))


def _not_gated(arguments: Arguments) -> bool:
    return not _gated(arguments)


def _stretched_as_llama3(arguments: Arguments) -> bool:
    return rotates(arguments) and bool(arguments.get("use_rope_scaling"))


def _rotates_odd(arguments: Arguments) -> bool:
    """It then turns one dimension more, ours one less."""
    size = arguments.get("kv_channels")
    if not size:
        size = arguments.get("hidden_size", 0) // arguments.get("num_attention_heads", 1)
    return rotates(arguments) and int(size * arguments["rotary_percent"]) % 2 == 1


def _has_window(arguments: Arguments) -> bool:
    window = arguments.get("window_size")
    return window is not None and window[0] >= 0


def _looks_ahead(arguments: Arguments) -> bool:
    return _has_window(arguments) and arguments["window_size"][1] != 0


def _has_layer_norms(arguments: Arguments) -> bool:
    return bool(arguments.get("normalization", "LayerNorm") == "LayerNorm")


@dataclass(frozen=True)
class Limit:
    """A name of which only some values can be imported.

    allowed: those values, the first being what a folder without the name means
    matters: whether the name changes what a model with these values computes
    rule:    said in place of the list of allowed values
    """

    name: str
    allowed: tuple[Any, ...]
    matters: Condition = always
    rule: str = ""

    def refusal(self, values: Mapping[str, Any], fix: str) -> Refusal | None:
        """What is wrong with the value among `values`, or None."""
        value = values.get(self.name, self.allowed[0])
        if value in self.allowed or not self.matters(values):
            return None
        shown = ", ".join(str(item) for item in self.allowed)
        choice = "must be one of" if len(self.allowed) > 1 else "must be"
        return Refusal(self.name, value, self.rule or f"{choice} {shown}", fix)


_OFF = (False, None)
_EVERY = "must give experts to layers N, 2 N, 3 N, ... (from 1) of one N, and to no others"
_EVEN = "must leave an even number of dimensions to rotate"
_ARGUMENTS = (
    Limit("position_embedding_type", ("learned_absolute", "rope", "none")),
    Limit("normalization", ("LayerNorm", "RMSNorm")),
    Limit("add_bias_linear", (True,), _has_layer_norms, "must be True beside LayerNorm"),
    Limit("add_bias_linear", (False,), routes, "must be False beside num_experts"),
    Limit("moe_layer_freq", (1,), _at_other_layers, _EVERY),
    Limit(
        "moe_router_load_balancing_type",
        ("aux_loss",),
        _balanced_by_sinkhorn,
        "must not be sinkhorn",
    ),
    Limit("moe_router_score_function", ("softmax",), routes),
    Limit("moe_router_topk_scaling_factor", (None, 1.0), routes),
    Limit("moe_router_num_groups", (None,), routes),
    Limit("moe_router_topk_limited_devices", (None,), routes),
    Limit("moe_router_enable_expert_bias", _OFF, routes),
    Limit("moe_router_force_load_balancing", _OFF, routes),
    Limit("moe_expert_capacity_factor", (None,), routes),
    Limit("moe_apply_probs_on_input", _OFF, routes),
    Limit("moe_latent_size", (None,), routes),
    Limit("mtp_num_layers", (None, 0)),
    Limit("multi_latent_attention", _OFF),
    Limit("experimental_attention_variant", (None,)),
    Limit("attention_output_gate", _OFF),
    Limit("softmax_type", ("vanilla",)),
    Limit("qk_l2_norm", _OFF),
    Limit("window_size", (None,), _looks_ahead, "must end with 0, at the token itself"),
    Limit("window_attn_skip_freq", (None,), _has_window),
    Limit("rotary_interleaved", _OFF, rotates),
    Limit("no_rope_freq", (None, 0), rotates),
    Limit("rotary_percent", (1.0,), _rotates_odd, _EVEN),
    Limit(
        "rotary_seq_len_interpolation_factor",
        (None, 1),
        _stretched_as_llama3,
        "must be None or 1 beside use_rope_scaling",
    ),
    Limit("squared_relu", _OFF),
    Limit("quick_geglu", _OFF),
    Limit("glu_linear_offset", (0, None), _gated),
    Limit("activation_func_clamp_value", (None,), _gated),
    Limit("use_te_activation_func", _OFF, _not_gated),
    Limit("is_hybrid_model", _OFF),
    Limit("heterogeneous_layers_config_path", (None,)),
    Limit("spec", (None,)),
)  # fmt: skip


def _has_layer_norm(model: Mapping[str, Any]) -> bool:
    return bool(model["norm"] == "layer_norm")


def _has_odd_rotation(model: Mapping[str, Any]) -> bool:
    size = model["head_dim"] or model["hidden_size"] // model["num_heads"]
    return model["position"] == "rotary" and int(size * model["rotary_fraction"]) % 2 == 1


def _has_experts(model: Mapping[str, Any]) -> bool:
    return bool(model["moe.num_experts"])


def _is_llama3(model: Mapping[str, Any]) -> bool:
    return bool(model["rotary_scaling.kind"] == "llama3")


_FIELDS = (
    Limit("architecture", ("decoder",)),
    Limit("position", ("learned", "rotary", "none")),
    Limit("rotary_fraction", (1.0,), _has_odd_rotation, _EVEN),
    Limit("rotary_scaling.kind", ("none", "linear", "llama3")),
    Limit("rotary_scaling.original_length", (8192,), _is_llama3),
    Limit("rotary_scaling.low_frequency", (1.0,), _is_llama3),
    Limit("rotary_scaling.high_frequency", (4.0,), _is_llama3),
    Limit("parallel_residual", (False,)),
    Limit("norm_position", ("pre",)),
    Limit("bias", (True,), _has_layer_norm, "must be True beside layer_norm"),
    Limit("bias", (False,), _has_experts, "must be False beside model.moe.num_experts"),
    Limit("embedding_scale", (1.0,)),
    Limit("embedding_norm", (False,)),
    Limit("token_types", (0,)),
    Limit("head_transform", (False,)),
    Limit("head_bias", (False,)),
    Limit("head_scale", (1.0,)),
)


def refused_arguments(arguments: Arguments) -> list[Refusal]:
    """Every argument whose value ROOTS has no field for."""
    fix = "if that was not so in the training, remove common.pt and give --config"
    found = (limit.refusal(arguments, fix) for limit in _ARGUMENTS)
    return [refusal for refusal in found if refusal is not None]


def refused_fields(model: ModelConfig, table_rows: int) -> list[Refusal]:
    """Every field whose value no GPTModel has, or whose tensors ROOTS does not map."""
    fix = "give the config of the model that was trained; ROOTS maps no other GPTModel"
    values = dict(_flat(model.model_dump()))
    found = [limit.refusal(values, fix) for limit in _FIELDS]
    if model.vocab_size > table_rows:
        rule = f"must be at most {table_rows}, the rows of the stored table"
        found.append(Refusal("vocab_size", model.vocab_size, rule, fix))
    return [refusal for refusal in found if refusal is not None]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Fields of nested sections with dotted names."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
