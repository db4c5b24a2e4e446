"""Llama (Touvron et al. 2023) and its relatives: Mistral, Qwen2 and Qwen3 differ by a few keys."""

from __future__ import annotations

from collections.abc import Iterator

from roots.config.model import ModelConfig
from roots.exchange.hf.config_map import (
    Choice,
    Entry,
    Equal,
    Fields,
    Fixed,
    Refusal,
    Tree,
    shown,
    trained_with,
)
from roots.exchange.hf.family import Family
from roots.exchange.hf.rotary_map import Rotary
from roots.exchange.hf.tensor_map import Rule, same


def body_tensors(model: ModelConfig) -> Iterator[Rule]:
    """The rules of everything but the MLP."""
    hidden, table = model.hidden_size, (model.vocab_size, model.hidden_size)
    rows = model.padded_vocab_size
    yield Rule("embedding.tokens.weight", (same("model.embed_tokens.weight", *table),), rows)
    for index in range(model.num_layers):
        ours, theirs = f"layers.{index}", f"model.layers.{index}"
        yield from _attention(model, f"{ours}.attention", f"{theirs}.self_attn")
        for name, part in (
            ("attention_norm", "input_layernorm"),
            ("mlp_norm", "post_attention_layernorm"),
        ):
            yield Rule(f"{ours}.{name}.weight", (same(f"{theirs}.{part}.weight", hidden),))
    yield Rule("final_norm.weight", (same("model.norm.weight", hidden),))
    if not model.tied_embeddings:
        yield Rule("head.weight", (same("lm_head.weight", *table),), rows)


def _attention(model: ModelConfig, ours: str, theirs: str) -> Iterator[Rule]:
    hidden, head = model.hidden_size, model.head_size
    heads = {"q": model.num_heads, "k": model.kv_heads, "v": model.kv_heads}
    sizes = {f"{theirs}.{part}_proj": count * head for part, count in heads.items()}
    matrices = (same(f"{name}.weight", size, hidden) for name, size in sizes.items())
    yield Rule(f"{ours}.qkv.weight", tuple(matrices))
    if model.has_qkv_bias:
        biases = (same(f"{name}.bias", size) for name, size in sizes.items())
        yield Rule(f"{ours}.qkv.bias", tuple(biases))
    output = same(f"{theirs}.o_proj.weight", hidden, model.num_heads * head)
    yield Rule(f"{ours}.output.weight", (output,))
    if model.bias:
        yield Rule(f"{ours}.output.bias", (same(f"{theirs}.o_proj.bias", hidden),))
    if model.qk_norm:
        for name, part in (("query_norm", "q_norm"), ("key_norm", "k_norm")):
            yield Rule(f"{ours}.{name}.weight", (same(f"{theirs}.{part}.weight", head),))


def mlp_tensors(model: ModelConfig, ours: str, theirs: str, inner: int) -> Iterator[Rule]:
    """The rules of one gated MLP of that inner width."""
    hidden, halves = model.hidden_size, [f"{theirs}.gate_proj", f"{theirs}.up_proj"]
    up = tuple(same(f"{name}.weight", inner, hidden) for name in halves)
    yield Rule(f"{ours}.up.weight", up)
    yield Rule(f"{ours}.down.weight", (same(f"{theirs}.down_proj.weight", hidden, inner),))
    if model.bias:
        biases = tuple(same(f"{name}.bias", inner) for name in halves)
        yield Rule(f"{ours}.up.bias", biases)
        yield Rule(f"{ours}.down.bias", (same(f"{theirs}.down_proj.bias", hidden),))


def _tensors(model: ModelConfig) -> Iterator[Rule]:
    yield from body_tensors(model)
    for index in range(model.num_layers):
        ours, theirs = f"layers.{index}.mlp", f"model.layers.{index}.mlp"
        yield from mlp_tensors(model, ours, theirs, model.ffn_size)


class LlamaBiases:
    """`attention_bias` and `mlp_bias`, which ROOTS has as one field `bias`."""

    ours = ("bias", "qkv_bias")

    def read(self, tree: Tree) -> Fields:
        """Both, or neither."""
        attention, mlp = tree.get("attention_bias", False), tree.get("mlp_bias", False)
        if attention != mlp:
            fix = "ROOTS has biases in both or in neither, so this model cannot be imported"
            raise Refusal("mlp_bias", mlp, f"must equal attention_bias={attention}", fix)
        return {"bias": attention}

    def write(self, model: ModelConfig) -> Fields:
        """Both alike."""
        if model.has_qkv_bias != model.bias:
            name, rule = "model.qkv_bias", f"must equal model.bias={shown(model.bias)}"
            raise Refusal(name, model.qkv_bias, rule, trained_with(name, None))
        return {"attention_bias": model.bias, "mlp_bias": model.bias}


class QueryKeyValueBiases:
    """Biases of queries, keys and values alone, as every Qwen2 has them."""

    ours = ("bias", "qkv_bias")

    def read(self, tree: Tree) -> Fields:
        """They are always there."""
        return {"bias": False, "qkv_bias": True}

    def write(self, model: ModelConfig) -> Fields:
        """No key says it; the model must be of that kind."""
        for field, value, wanted in (
            ("bias", model.bias, False),
            ("qkv_bias", model.has_qkv_bias, True),
        ):
            if value != wanted:
                name = f"model.{field}"
                raise Refusal(name, value, f"must be {shown(wanted)}", trained_with(name, wanted))
        return {}


class LayerWindow:
    """Qwen's window: on all layers, or, without `use_sliding_window`, on none."""

    ours = ("window",)

    def read(self, tree: Tree) -> Fields:
        """The window of all layers. Raises Refusal where some have one and some not."""
        count = tree.get("num_hidden_layers", 32)
        kinds = set(tree.get("layer_types") or ())
        if not tree.get("use_sliding_window", False):
            kinds = kinds or {"full_attention"}
        elif not kinds:
            full = min(count, tree.get("max_window_layers", 28))
            kinds = {"full_attention"} if full else set()
            kinds |= {"sliding_attention"} if full < count else set()
        if kinds == {"full_attention"}:
            return {"window": None}
        if kinds == {"sliding_attention"}:
            return {"window": tree.get("sliding_window", 4096)}
        fix = "ROOTS has one window for all layers, so this model cannot be imported"
        raise Refusal("layer_types", sorted(kinds), "must be alike on all layers", fix)

    def write(self, model: ModelConfig) -> Fields:
        """On all layers or on none."""
        kind = "full_attention" if model.window is None else "sliding_attention"
        return {
            "use_sliding_window": model.window is not None,
            "sliding_window": model.window,
            "max_window_layers": 0 if model.window is not None else model.num_layers,
            "layer_types": [kind] * model.num_layers,
        }


def common_entries(
    *,
    heads: int | None = None,
    length: int,
    inner: int,
    resolved_inner: str = "ffn_size",
    head: int | None = None,
    epsilon: float = 1e-6,
    base: float = 10000.0,
) -> tuple[Entry, ...]:
    """The keys that all relatives share, with the defaults that differ."""
    return (
        Equal("vocab_size", "vocab_size", 32000),
        Equal("max_position_embeddings", "sequence_length", length),
        Equal("hidden_size", "hidden_size", 4096),
        Equal("num_hidden_layers", "num_layers", 32),
        Equal("num_attention_heads", "num_heads", 32),
        Equal("num_key_value_heads", "num_kv_heads", heads, resolved="kv_heads"),
        Equal("head_dim", "head_dim", head, resolved="head_size"),
        Equal("intermediate_size", "ffn_hidden_size", inner, resolved=resolved_inner),
        Equal("rms_norm_eps", "norm_epsilon", epsilon),
        Equal("initializer_range", "init_std", 0.02),
        Equal("tie_word_embeddings", "tied_embeddings", False),
        Equal("attention_dropout", "attention_dropout", 0.0),
        Choice("hidden_act", "activation", (("silu", "swiglu"),), "silu"),
        Rotary(base=base),
    )


FIELDS = {"position": "rotary", "norm": "rms_norm"}
IGNORED = (r".*rotary_emb\.inv_freq",)
COPIES = (("lm_head.weight", "model.embed_tokens.weight"),)

LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    entries=(
        *common_entries(length=2048, inner=11008),
        LlamaBiases(),
        Fixed("pretraining_tp", 1),
    ),
    fields=FIELDS,
    tensors=_tensors,
    prefix="model.",
    ignored=IGNORED,
    copies=COPIES,
)

MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    entries=(
        *common_entries(heads=8, length=4096 * 32, inner=14336),
        Equal("sliding_window", "window", 4096),
    ),
    fields={**FIELDS, "bias": False},
    tensors=_tensors,
    prefix="model.",
    ignored=IGNORED,
    copies=COPIES,
)

QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    entries=(
        *common_entries(heads=32, length=32768, inner=22016),
        QueryKeyValueBiases(),
        LayerWindow(),
    ),
    fields=FIELDS,
    tensors=_tensors,
    prefix="model.",
    harmless=frozenset({"sliding_window"}),
    ignored=IGNORED,
    copies=COPIES,
)

QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    entries=(
        *common_entries(heads=32, length=32768, inner=22016, head=128),
        Fixed("attention_bias", False),
        LayerWindow(),
    ),
    fields={**FIELDS, "bias": False, "qk_norm": True},
    tensors=_tensors,
    prefix="model.",
    harmless=frozenset({"sliding_window"}),
    ignored=IGNORED,
    copies=COPIES,
)
