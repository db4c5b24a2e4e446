"""GPT-NeoX (Black et al. 2022, arXiv:2204.06745): parallel branches, partly rotated heads."""

from __future__ import annotations

from collections.abc import Iterator

from roots.config.model import ModelConfig
from roots.exchange.hf.config_map import Choice, Equal, Fixed
from roots.exchange.hf.family import Family
from roots.exchange.hf.gpt2 import ACTIVATIONS
from roots.exchange.hf.rotary_map import Rotary
from roots.exchange.hf.tensor_map import Part, Rule, permuted, same


def _tensors(model: ModelConfig) -> Iterator[Rule]:
    hidden, inner = model.hidden_size, model.ffn_size
    table, rows = (model.vocab_size, model.hidden_size), model.padded_vocab_size
    yield Rule("embedding.tokens.weight", (same("gpt_neox.embed_in.weight", *table),), rows)
    matrices = (
        ("attention.output", "attention.dense", hidden, hidden),
        ("mlp.up", "mlp.dense_h_to_4h", inner, hidden),
        ("mlp.down", "mlp.dense_4h_to_h", hidden, inner),
    )
    norms = (("attention_norm", "input_layernorm"), ("mlp_norm", "post_attention_layernorm"))
    for index in range(model.num_layers):
        ours, theirs = f"layers.{index}", f"gpt_neox.layers.{index}"
        qkv = f"{theirs}.attention.query_key_value"
        yield _rule(f"{ours}.attention.qkv.weight", _by_head(f"{qkv}.weight", model, hidden))
        yield _rule(f"{ours}.attention.qkv.bias", _by_head(f"{qkv}.bias", model))
        for name, part, out_size, in_size in matrices:
            weight = same(f"{theirs}.{part}.weight", out_size, in_size)
            yield _rule(f"{ours}.{name}.weight", weight)
            yield _rule(f"{ours}.{name}.bias", same(f"{theirs}.{part}.bias", out_size))
        for name, part in norms:
            for kind in ("weight", "bias"):
                yield _rule(f"{ours}.{name}.{kind}", same(f"{theirs}.{part}.{kind}", hidden))
    for kind in ("weight", "bias"):
        yield _rule(f"final_norm.{kind}", same(f"gpt_neox.final_layer_norm.{kind}", hidden))
    if not model.tied_embeddings:
        yield Rule("head.weight", (same("embed_out.weight", *table),), rows)


def _by_head(name: str, model: ModelConfig, *rest: int) -> Part:
    """Theirs has query, key and value of one head beside each other; ours all queries first."""
    return permuted(name, (model.num_heads, 3, model.head_size), (1, 0, 2), *rest)


def _rule(name: str, part: Part) -> Rule:
    return Rule(name, (part,))


GPT_NEOX = Family(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    entries=(
        Equal("vocab_size", "vocab_size", 50432),
        Equal("max_position_embeddings", "sequence_length", 2048),
        Equal("hidden_size", "hidden_size", 6144),
        Equal("num_hidden_layers", "num_layers", 44),
        Equal("num_attention_heads", "num_heads", 64),
        Equal("intermediate_size", "ffn_hidden_size", 24576, resolved="ffn_size"),
        Equal("layer_norm_eps", "norm_epsilon", 1e-5),
        Equal("initializer_range", "init_std", 0.02),
        Equal("tie_word_embeddings", "tied_embeddings", False),
        Equal("use_parallel_residual", "parallel_residual", True),
        Choice("hidden_act", "activation", ACTIVATIONS, "gelu"),
        Equal("hidden_dropout", "dropout", 0.0),
        Equal("attention_dropout", "attention_dropout", 0.0),
        Fixed("attention_bias", True),
        Rotary(base_key="rotary_emb_base", fraction_key="rotary_pct", fraction=0.25, partial=True),
    ),
    fields={"position": "rotary", "norm": "layer_norm", "bias": True},
    tensors=_tensors,
    prefix="gpt_neox.",
    ignored=(r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
    copies=(("embed_out.weight", "gpt_neox.embed_in.weight"),),
    harmless=frozenset({"is_decoder"}),
)
