"""Arguments of Megatron-LM and fields of `model`: one table to read them, and to compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from roots.config.model import RESOLVED_FIELDS, ModelConfig
from roots.config.unread_fields import field_of
from roots.exchange.hf.config_map import Fields, Refusal
from roots.exchange.megatron.limits import (
    Arguments,
    Condition,
    always,
    experts_every,
    layers_with_experts,
    rotates,
    routes,
)

_SHARED_WIDTH = "moe_shared_expert_intermediate_size"
_ZERO_CENTRED = ("apply_layernorm_1p", "layernorm_zero_centered_gamma")
_COMPARED_AS = {
    **RESOLVED_FIELDS,
    "moe.ffn_hidden_size": "expert_ffn_size",
    "moe.shared_ffn_hidden_size": "shared_ffn_size",
    "moe.normalise_weights": "moe.normalises",
}
_POSITIONS = {"learned_absolute": "learned", "rope": "rotary", "none": "none"}


@dataclass(frozen=True)
class Mapped:
    """A field and the arguments that it follows from.

    compared: whether another value in a given config makes another model of the same tensors
    matters:  whether the field means anything in a model with these arguments
    """

    field: str
    names: tuple[str, ...]
    read: Callable[[Arguments], Any]
    compared: bool = True
    matters: Condition = always


def megatron_model(arguments: Arguments, table_rows: int) -> Fields:
    """Fields of `model` from arguments of which none is refused."""
    fields: Fields = {"vocab_size": arguments.get("vocab_size") or table_rows}
    for row in _MAPPED:
        if row.matters(arguments):
            section, _, name = row.field.rpartition(".")
            place = fields.setdefault(section, {}) if section else fields
            place[name] = row.read(arguments)
    return fields


def differing_fields(model: ModelConfig, arguments: Arguments) -> Iterator[Refusal]:
    """Fields of a given config that compute something else than what the arguments say.

    Only arguments that are there are compared. Null is left to the tensors' shapes where it
    follows from other fields.
    """
    for row in _MAPPED:
        names = [name for name in row.names if name in arguments]
        if not (row.compared and names and row.matters(arguments)):
            continue
        expected = row.read(arguments)
        if expected is None and row.field in RESOLVED_FIELDS:
            continue
        found = field_of(model, _COMPARED_AS.get(row.field, row.field))
        if isinstance(expected, dict):
            found = {key: getattr(found, key) for key in expected}
        if found != expected:
            stated = ", ".join(f"{name}={arguments[name]!r}" for name in names)
            rule = f"must be {expected!r}, as the stored arguments have {stated}"
            fix = "set it so, or remove common.pt if the training had it otherwise"
            yield Refusal(row.field, found, rule, fix)


def _get(name: str, default: Any = None) -> Callable[[Arguments], Any]:
    return lambda arguments: arguments.get(name, default)


def _flag(name: str) -> Callable[[Arguments], bool]:
    return lambda arguments: bool(arguments.get(name, False))


def _kv_heads(arguments: Arguments) -> Any:
    grouped = arguments.get("group_query_attention")
    return arguments.get("num_query_groups" if grouped else "num_attention_heads")


def _length(arguments: Arguments) -> Any:
    return arguments.get("max_position_embeddings") or arguments.get("seq_length") or 256


def _position(arguments: Arguments) -> str:
    return _POSITIONS[arguments.get("position_embedding_type", "learned_absolute")]


def _scaling(arguments: Arguments) -> Fields:
    if arguments.get("use_rope_scaling", False):
        kept = {"original_length": 8192, "low_frequency": 1.0, "high_frequency": 4.0}
        return {"kind": "llama3", "factor": arguments.get("rope_scaling_factor", 8.0), **kept}
    factor = arguments.get("rotary_seq_len_interpolation_factor")
    return {"kind": "none"} if factor in (None, 1) else {"kind": "linear", "factor": factor}


def _window(arguments: Arguments) -> int | None:
    """Theirs counts the tokens to the left, ours the token itself too."""
    window = arguments.get("window_size")
    return None if window is None or window[0] < 0 else window[0] + 1


def _norm(arguments: Arguments) -> str:
    return "rms_norm" if arguments.get("normalization") == "RMSNorm" else "layer_norm"


def _epsilon(arguments: Arguments) -> Any:
    return arguments.get("norm_epsilon", arguments.get("layernorm_epsilon", 1e-5))


def _zero_centred(arguments: Arguments) -> bool:
    """Older parsers store the name of the option, newer ones that of TransformerConfig."""
    return any(arguments.get(name, False) for name in _ZERO_CENTRED)


def _activation(arguments: Arguments) -> str:
    if arguments.get("swiglu", False):
        return "swiglu"
    # Its fused kernel computes the tanh form, its plain path the exact one.
    fused = arguments.get("bias_gelu_fusion", True) and arguments.get("add_bias_linear", True)
    return "gelu_tanh" if fused else "gelu"


def _bias(arguments: Arguments) -> bool:
    return bool(arguments.get("add_bias_linear", True))


def _qkv_bias(arguments: Arguments) -> bool:
    return _bias(arguments) or bool(arguments.get("add_qkv_bias", False))


def _tied(arguments: Arguments) -> bool:
    return not arguments.get("untie_embeddings_and_output_weights", False)


def _has_dense_layers(arguments: Arguments) -> bool:
    return not routes(arguments) or not all(layers_with_experts(arguments))


def _num_experts(arguments: Arguments) -> int:
    return arguments.get("num_experts") or 0


def _expert_width(arguments: Arguments) -> Any:
    return arguments.get("moe_ffn_hidden_size") or arguments.get("ffn_hidden_size")


def _shares(arguments: Arguments) -> bool:
    return routes(arguments) and bool(arguments.get(_SHARED_WIDTH))


def _balance(arguments: Arguments) -> float:
    """The weight of their one loss, or of the first of several, which may count other tokens."""
    if arguments.get("moe_router_load_balancing_type") in ("none", ["none"]):
        return 0.0
    given = arguments.get("moe_aux_loss_coeff") or 0.0
    return float(given[0] if isinstance(given, (list, tuple)) else given)


def _normalises(arguments: Arguments) -> bool:
    """A softmax over the chosen logits sums to 1; one over all, before the choice, does not."""
    return not arguments.get("moe_router_pre_softmax", False)


_MAPPED = (
    Mapped("hidden_size", ("hidden_size",), _get("hidden_size")),
    Mapped("num_layers", ("num_layers",), _get("num_layers")),
    Mapped("num_heads", ("num_attention_heads",), _get("num_attention_heads")),
    Mapped("num_kv_heads", ("group_query_attention",), _kv_heads),
    Mapped("head_dim", ("kv_channels",), _get("kv_channels")),
    Mapped(
        "ffn_hidden_size",
        ("ffn_hidden_size",),
        _get("ffn_hidden_size"),
        matters=_has_dense_layers,
    ),
    Mapped("sequence_length", ("max_position_embeddings",), _length, compared=False),
    Mapped("position", ("position_embedding_type",), _position),
    Mapped("rotary_base", ("rotary_base",), _get("rotary_base", 10000), matters=rotates),
    Mapped("rotary_fraction", ("rotary_percent",), _get("rotary_percent", 1.0), matters=rotates),
    Mapped(
        "rotary_scaling",
        ("use_rope_scaling", "rope_scaling_factor", "rotary_seq_len_interpolation_factor"),
        _scaling,
        matters=rotates,
    ),
    Mapped("window", ("window_size",), _window),
    Mapped("attention_scale", ("softmax_scale",), _get("softmax_scale")),
    Mapped("qk_norm", ("qk_layernorm",), _flag("qk_layernorm")),
    Mapped("norm", ("normalization",), _norm),
    Mapped("norm_epsilon", ("norm_epsilon", "layernorm_epsilon"), _epsilon),
    Mapped("norm_zero_centred", _ZERO_CENTRED, _zero_centred),
    Mapped("activation", ("swiglu", "bias_gelu_fusion"), _activation),
    Mapped("bias", ("add_bias_linear",), _bias),
    Mapped("qkv_bias", ("add_qkv_bias", "add_bias_linear"), _qkv_bias),
    Mapped("tied_embeddings", ("untie_embeddings_and_output_weights",), _tied),
    Mapped("moe.num_experts", ("num_experts",), _num_experts),
    Mapped("moe.top_k", ("moe_router_topk",), _get("moe_router_topk", 2), matters=routes),
    Mapped(
        "moe.ffn_hidden_size",
        ("moe_ffn_hidden_size", "ffn_hidden_size"),
        _expert_width,
        matters=routes,
    ),
    Mapped("moe.every", ("moe_layer_freq",), experts_every, matters=routes),
    Mapped("moe.normalise_weights", ("moe_router_pre_softmax",), _normalises, matters=routes),
    Mapped(
        "moe.num_shared_experts", (_SHARED_WIDTH,), lambda _: 1, compared=False, matters=_shares
    ),
    Mapped("moe.shared_ffn_hidden_size", (_SHARED_WIDTH,), _get(_SHARED_WIDTH), matters=_shares),
    Mapped(
        "moe.shared_expert_gate",
        ("moe_shared_expert_gate",),
        _flag("moe_shared_expert_gate"),
        matters=_shares,
    ),
    Mapped(
        "moe.balance_loss",
        ("moe_aux_loss_coeff", "moe_router_load_balancing_type"),
        _balance,
        compared=False,
        matters=routes,
    ),
    Mapped(
        "moe.z_loss",
        ("moe_z_loss_coeff",),
        lambda arguments: arguments.get("moe_z_loss_coeff") or 0.0,
        compared=False,
        matters=routes,
    ),
    Mapped("dropout", ("hidden_dropout",), _get("hidden_dropout", 0.1), compared=False),
    Mapped(
        "attention_dropout", ("attention_dropout",), _get("attention_dropout", 0.1), compared=False
    ),
    Mapped("init_std", ("init_method_std",), _get("init_method_std", 0.02), compared=False),
)
