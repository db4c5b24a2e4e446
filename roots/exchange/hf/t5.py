"""T5 (Raffel et al. 2019, arXiv:1910.10683): relative positions, scores that are not scaled."""

from __future__ import annotations

import math
from collections.abc import Iterator

from roots.config.model import ModelConfig
from roots.exchange.hf.config_map import (
    Alike,
    Choice,
    Equal,
    Fields,
    Refusal,
    Tree,
    shown,
    trained_with,
)
from roots.exchange.hf.family import Family
from roots.exchange.hf.tensor_map import Rule, same

_TABLE = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"


def _tensors(model: ModelConfig) -> Iterator[Rule]:
    hidden, rows = model.hidden_size, model.padded_vocab_size
    table = (model.vocab_size, hidden)
    yield Rule("embedding.tokens.weight", (same("shared.weight", *table),), rows)
    distances = (model.relative_buckets, model.num_heads)
    stacks = (
        ("encoder", "encoder.", "embedding.source.relative", model.encoder_layers),
        ("decoder", "", "embedding.relative", model.num_layers),
    )
    for theirs, ours, relative, count in stacks:
        yield Rule(f"{relative}.weight", (same(f"{theirs}.{_TABLE}", *distances),))
        for index in range(count):
            block, layer = f"{ours}layers.{index}", f"{theirs}.block.{index}.layer"
            yield from _attention(model, f"{block}.attention", f"{layer}.0.SelfAttention")
            yield _norm(f"{block}.attention_norm", f"{layer}.0", hidden)
            if theirs == "decoder":
                yield from _cross(model, f"{block}.cross", f"{layer}.1.EncDecAttention")
                yield _norm(f"{block}.cross_norm", f"{layer}.1", hidden)
            last = 2 if theirs == "decoder" else 1
            yield from _mlp(model, f"{block}.mlp", f"{layer}.{last}.DenseReluDense")
            yield _norm(f"{block}.mlp_norm", f"{layer}.{last}", hidden)
        final = same(f"{theirs}.final_layer_norm.weight", hidden)
        yield Rule(f"{ours}final_norm.weight", (final,))
    if not model.tied_embeddings:
        yield Rule("head.weight", (same("lm_head.weight", *table),), rows)


def _attention(model: ModelConfig, ours: str, theirs: str) -> Iterator[Rule]:
    size = model.num_heads * model.head_size
    parts = (same(f"{theirs}.{part}.weight", size, model.hidden_size) for part in "qkv")
    yield Rule(f"{ours}.qkv.weight", tuple(parts))
    yield Rule(f"{ours}.output.weight", (same(f"{theirs}.o.weight", model.hidden_size, size),))


def _cross(model: ModelConfig, ours: str, theirs: str) -> Iterator[Rule]:
    size, hidden = model.num_heads * model.head_size, model.hidden_size
    q, k, v = (same(f"{theirs}.{part}.weight", size, hidden) for part in "qkv")
    yield Rule(f"{ours}.query.weight", (q,))
    yield Rule(f"{ours}.kv.weight", (k, v))
    yield Rule(f"{ours}.output.weight", (same(f"{theirs}.o.weight", hidden, size),))


def _mlp(model: ModelConfig, ours: str, theirs: str) -> Iterator[Rule]:
    hidden, inner = model.hidden_size, model.ffn_size
    names = ("wi_0", "wi_1") if model.gated else ("wi",)
    up = tuple(same(f"{theirs}.{name}.weight", inner, hidden) for name in names)
    yield Rule(f"{ours}.up.weight", up)
    yield Rule(f"{ours}.down.weight", (same(f"{theirs}.wo.weight", hidden, inner),))


def _norm(ours: str, theirs: str, size: int) -> Rule:
    return Rule(f"{ours}.weight", (same(f"{theirs}.layer_norm.weight", size),))


class Depths:
    """`num_layers` is the encoder's there, and the decoder's here."""

    ours = ("num_layers", "num_encoder_layers")

    def read(self, tree: Tree) -> Fields:
        """A decoder without a depth of its own is as deep as the encoder."""
        encoder = tree.get("num_layers", 6)
        decoder = tree.get("num_decoder_layers")
        return {
            "num_encoder_layers": encoder,
            "num_layers": encoder if decoder is None else decoder,
        }

    def write(self, model: ModelConfig) -> Fields:
        """Both."""
        return {"num_layers": model.encoder_layers, "num_decoder_layers": model.num_layers}


class Head:
    """A tied head scales what enters it by 1 / sqrt(width), one of its own does not."""

    ours = ("tied_embeddings", "head_scale")

    def read(self, tree: Tree) -> Fields:
        """Both follow from one key, unless a second one says otherwise of the scale."""
        tied = tree.get("tie_word_embeddings", True)
        scaled = tree.get("scale_decoder_outputs", tied)
        width = tree.get("d_model", 512)
        return {"tied_embeddings": tied, "head_scale": width**-0.5 if scaled else 1.0}

    def write(self, model: ModelConfig) -> Fields:
        """The key, if the scale is the one that follows from it."""
        expected = model.hidden_size**-0.5 if model.tied_embeddings else 1.0
        if not math.isclose(model.head_scale, expected, rel_tol=1e-6):
            tied = shown(model.tied_embeddings)
            rule = f"must be {expected} with model.tied_embeddings={tied}"
            name = "model.head_scale"
            raise Refusal(name, model.head_scale, rule, trained_with(name, expected))
        return {"tie_word_embeddings": model.tied_embeddings}


_ACTIVATIONS = (
    ("relu", "relu"),
    ("gated-gelu", "geglu_tanh"),
    ("gated-silu", "swiglu"),
    ("gelu", "gelu"),
    ("gelu_new", "gelu_tanh"),
)

T5 = Family(
    model_type="t5",
    architecture="T5ForConditionalGeneration",
    entries=(
        Equal("vocab_size", "vocab_size", 32128),
        # Positions are relative: the released models only name the length they were trained on.
        Equal("n_positions", "sequence_length", 512),
        Equal("d_model", "hidden_size", 512),
        Equal("d_kv", "head_dim", 64, resolved="head_size"),
        Equal("d_ff", "ffn_hidden_size", 2048, resolved="ffn_size"),
        Depths(),
        Equal("num_heads", "num_heads", 8),
        Equal("relative_attention_num_buckets", "relative_buckets", 32),
        Equal("relative_attention_max_distance", "relative_max_distance", 128),
        Equal("layer_norm_epsilon", "norm_epsilon", 1e-6),
        Choice("feed_forward_proj", "activation", _ACTIVATIONS, "relu"),
        Alike(("dropout_rate",), "dropout", 0.1),
        Head(),
    ),
    fields={
        "architecture": "encoder_decoder",
        "position": "relative",
        "norm": "rms_norm",
        "bias": False,
        "attention_scale": 1.0,
    },
    unused=frozenset({"source_length"}),
    constants={"is_encoder_decoder": True},
    tensors=_tensors,
    prefix="decoder.",
    copies=(
        ("lm_head.weight", "shared.weight"),
        ("encoder.embed_tokens.weight", "shared.weight"),
        ("decoder.embed_tokens.weight", "shared.weight"),
    ),
    # The two of the activation follow from feed_forward_proj.
    harmless=frozenset({"is_decoder", "vocab_file", "dense_act_fn", "is_gated_act"}),
    ignored=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
)
