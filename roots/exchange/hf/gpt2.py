"""GPT-2 (Radford et al. 2019): learned positions, its linear layers stored as [in, out]."""

from __future__ import annotations

from collections.abc import Iterator

from roots.config.model import ModelConfig
from roots.exchange.hf.config_map import Alike, Choice, Equal, Fixed
from roots.exchange.hf.family import Family
from roots.exchange.hf.tensor_map import Part, Rule, same, transposed


def _tensors(model: ModelConfig) -> Iterator[Rule]:
    hidden, inner = model.hidden_size, model.ffn_size
    table = (model.vocab_size, hidden)
    rows = model.padded_vocab_size
    yield Rule("embedding.tokens.weight", (same("transformer.wte.weight", *table),), rows)
    positions = same("transformer.wpe.weight", model.sequence_length, hidden)
    yield Rule("embedding.positions.weight", (positions,))
    matrices = (
        ("attention.qkv", "attn.c_attn", 3 * hidden, hidden),
        ("attention.output", "attn.c_proj", hidden, hidden),
        ("mlp.up", "mlp.c_fc", inner, hidden),
        ("mlp.down", "mlp.c_proj", hidden, inner),
    )
    norms = (("attention_norm", "ln_1"), ("mlp_norm", "ln_2"))
    for index in range(model.num_layers):
        ours, theirs = f"layers.{index}", f"transformer.h.{index}"
        for name, part, out_size, in_size in matrices:
            yield _rule(
                f"{ours}.{name}.weight", transposed(f"{theirs}.{part}.weight", out_size, in_size)
            )
            yield _rule(f"{ours}.{name}.bias", same(f"{theirs}.{part}.bias", out_size))
        for name, part in norms:
            for kind in ("weight", "bias"):
                yield _rule(f"{ours}.{name}.{kind}", same(f"{theirs}.{part}.{kind}", hidden))
    for kind in ("weight", "bias"):
        yield _rule(f"final_norm.{kind}", same(f"transformer.ln_f.{kind}", hidden))
    if not model.tied_embeddings:
        yield Rule("head.weight", (same("lm_head.weight", *table),), rows)


def _rule(name: str, part: Part) -> Rule:
    return Rule(name, (part,))


ACTIVATIONS = (
    ("gelu_new", "gelu_tanh"),
    ("gelu_pytorch_tanh", "gelu_tanh"),
    ("gelu_fast", "gelu_tanh"),
    ("gelu", "gelu"),
    ("relu", "relu"),
)

GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    entries=(
        Equal("vocab_size", "vocab_size", 50257),
        Equal("n_positions", "sequence_length", 1024),
        Equal("n_embd", "hidden_size", 768),
        Equal("n_layer", "num_layers", 12),
        Equal("n_head", "num_heads", 12),
        Equal("n_inner", "ffn_hidden_size", None, resolved="ffn_size"),
        Equal("layer_norm_epsilon", "norm_epsilon", 1e-5),
        Equal("initializer_range", "init_std", 0.02),
        Equal("tie_word_embeddings", "tied_embeddings", True),
        Choice("activation_function", "activation", ACTIVATIONS, "gelu_new"),
        Alike(("resid_pdrop", "embd_pdrop"), "dropout", 0.1),
        Equal("attn_pdrop", "attention_dropout", 0.1),
        Fixed("scale_attn_weights", True),
        Fixed("scale_attn_by_inverse_layer_idx", False),
        Fixed("add_cross_attention", False),
    ),
    fields={"position": "learned", "norm": "layer_norm", "bias": True},
    tensors=_tensors,
    prefix="transformer.",
    ignored=(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",),
    copies=(("lm_head.weight", "transformer.wte.weight"),),
    harmless=frozenset(
        {
            "n_ctx",
            "is_decoder",
            # In which order and precision the same products are computed.
            "reorder_and_upcast_attn",
            "summary_activation",
            "summary_first_dropout",
            "summary_proj_to_labels",
            "summary_type",
            "summary_use_proj",
        }
    ),
)
