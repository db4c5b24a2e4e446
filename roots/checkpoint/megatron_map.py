"""GPTModel of Megatron-core against ROOTS: names of tensors, and the arguments of its runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from roots.checkpoint.hf.config_map import Fields, Refusal
from roots.checkpoint.hf.tensor_map import Part, Rule, same, taken
from roots.config.model import ModelConfig

_TABLE = "embedding.word_embeddings.weight"
_HEAD = "output_layer.weight"


def megatron_tensors(model: ModelConfig, table_rows: int) -> Iterator[Rule]:
    """The rules of all tensors; `table_rows` are the rows of its padded vocabulary."""
    hidden = model.hidden_size

    def table(name: str) -> Part:
        return taken(name, (table_rows,), 0, (0, model.vocab_size), hidden)

    rows = model.padded_vocab_size
    yield Rule("embedding.tokens.weight", (table(_TABLE),), rows)
    if model.position == "learned":
        positions = same("embedding.position_embeddings.weight", model.sequence_length, hidden)
        yield Rule("embedding.positions.weight", (positions,))
    for index in range(model.num_layers):
        yield from _layer(model, f"layers.{index}", f"decoder.layers.{index}")
    yield from _norm(model, "final_norm", "decoder.final_layernorm.", hidden)
    if not model.tied_embeddings:
        yield Rule("head.weight", (table(_HEAD),), rows)


def _layer(model: ModelConfig, ours: str, theirs: str) -> Iterator[Rule]:
    hidden = model.hidden_size
    attention, mlp = f"{theirs}.self_attention", f"{theirs}.mlp"
    yield from _norm(model, f"{ours}.attention_norm", f"{attention}.linear_qkv.layer_norm_", hidden)
    yield from _norm(model, f"{ours}.mlp_norm", f"{mlp}.linear_fc1.layer_norm_", hidden)
    qkv = f"{attention}.linear_qkv"
    yield Rule(f"{ours}.attention.qkv.weight", _by_group(model, f"{qkv}.weight", hidden))
    if model.has_qkv_bias:
        yield Rule(f"{ours}.attention.qkv.bias", _by_group(model, f"{qkv}.bias"))
    if model.qk_norm:
        for name, part in (("query_norm", "q_layernorm"), ("key_norm", "k_layernorm")):
            where = f"{attention}.{part}."
            yield from _norm(model, f"{ours}.attention.{name}", where, model.head_size)
    inner = model.ffn_size * (2 if model.gated else 1)
    for name, part, out_size, in_size in (
        ("attention.output", f"{attention}.linear_proj", hidden, model.num_heads * model.head_size),
        ("mlp.up", f"{mlp}.linear_fc1", inner, hidden),
        ("mlp.down", f"{mlp}.linear_fc2", hidden, model.ffn_size),
    ):
        yield Rule(f"{ours}.{name}.weight", (same(f"{part}.weight", out_size, in_size),))
        if model.bias:
            yield Rule(f"{ours}.{name}.bias", (same(f"{part}.bias", out_size),))


def _by_group(model: ModelConfig, name: str, *rest: int) -> tuple[Part, ...]:
    """Theirs has the queries of a group, its key and its value beside each other."""
    groups = model.kv_heads
    queries = model.num_heads // groups
    sizes = (groups, queries + 2, model.head_size)
    bounds = ((0, queries), (queries, queries + 1), (queries + 1, queries + 2))
    return tuple(taken(name, sizes, 1, bound, *rest) for bound in bounds)


def _norm(model: ModelConfig, ours: str, theirs: str, size: int) -> Iterator[Rule]:
    """Weight and, in a layer norm, bias; the name without `weight` is given whole."""
    yield Rule(f"{ours}.weight", (same(f"{theirs}weight", size),))
    if model.norm == "layer_norm" and model.bias:
        yield Rule(f"{ours}.bias", (same(f"{theirs}bias", size),))


def megatron_model(arguments: Mapping[str, Any], table_rows: int) -> Fields:
    """Fields of `model` from the arguments that Megatron-LM stores beside the weights.

    Raises Refusal for what ROOTS does not have.
    """
    get = arguments.get
    for name, allowed in (
        ("num_experts", (None, 0)),
        ("multi_latent_attention", (None, False)),
        ("squared_relu", (None, False)),
        ("rotary_interleaved", (None, False)),
        ("position_embedding_type", ("learned_absolute", "rope")),
        ("normalization", ("LayerNorm", "RMSNorm")),
    ):
        value = get(name, allowed[0])
        if value not in allowed:
            rule = f"must be one of {', '.join(str(item) for item in allowed)}"
            fix = "ROOTS has no map for another value; give --config if the argument is not true"
            raise Refusal(name, value, rule, fix)
    bias = bool(get("add_bias_linear", True))
    learned = get("position_embedding_type", "learned_absolute") == "learned_absolute"
    lengths = (get("max_position_embeddings"), get("seq_length"))
    window = get("window_size")
    fields: Fields = {
        "hidden_size": get("hidden_size"),
        "num_layers": get("num_layers"),
        "num_heads": get("num_attention_heads"),
        "num_kv_heads": get("num_query_groups") if get("group_query_attention") else None,
        "head_dim": get("kv_channels"),
        "ffn_hidden_size": get("ffn_hidden_size"),
        "vocab_size": get("vocab_size") or table_rows,
        "sequence_length": next(length for length in (*lengths, 256) if length),
        "position": "learned" if learned else "rotary",
        "rotary_base": get("rotary_base", 10000),
        "rotary_fraction": get("rotary_percent", 1.0),
        "norm": "rms_norm" if get("normalization") == "RMSNorm" else "layer_norm",
        "norm_epsilon": get("norm_epsilon", get("layernorm_epsilon", 1e-5)),
        "norm_zero_centred": bool(get("apply_layernorm_1p", False)),
        "activation": _activation(arguments),
        "bias": bias,
        "qkv_bias": bias or bool(get("add_qkv_bias", False)),
        "qk_norm": bool(get("qk_layernorm", False)),
        "tied_embeddings": not get("untie_embeddings_and_output_weights", False),
        "dropout": get("hidden_dropout", 0.1),
        "attention_dropout": get("attention_dropout", 0.1),
        "init_std": get("init_method_std", 0.02),
        "window": None if window is None or window[0] < 0 else window[0] + 1,
    }
    if get("use_rope_scaling", False):
        factor = get("rope_scaling_factor", 8.0)
        fields["rotary_scaling"] = {"kind": "llama3", "factor": factor, "original_length": 8192}
    return fields


def _activation(arguments: Mapping[str, Any]) -> str:
    if arguments.get("swiglu", False):
        return "swiglu"
    # Its fused kernel computes the tanh form, its plain path the exact one.
    fused = arguments.get("bias_gelu_fusion", True) and arguments.get("add_bias_linear", True)
    return "gelu_tanh" if fused or arguments.get("openai_gelu", False) else "gelu"
