"""BERT (Devlin et al. 2018, arXiv:1810.04805) with its masked-token head."""

from __future__ import annotations

from collections.abc import Iterator

from roots.config.model import ModelConfig
from roots.exchange.hf.config_map import Choice, Equal, Fixed
from roots.exchange.hf.family import Family
from roots.exchange.hf.tensor_map import Part, Rule, same

_PARTS = (
    ("attention.output", "attention.output.dense"),
    ("attention_norm", "attention.output.LayerNorm"),
    ("mlp.up", "intermediate.dense"),
    ("mlp.down", "output.dense"),
    ("mlp_norm", "output.LayerNorm"),
)


def _tensors(model: ModelConfig) -> Iterator[Rule]:
    hidden, inner, rows = model.hidden_size, model.ffn_size, model.padded_vocab_size
    tables = (
        ("tokens", "word_embeddings", model.vocab_size),
        ("positions", "position_embeddings", model.sequence_length),
        ("token_types", "token_type_embeddings", model.token_types),
    )
    for ours, theirs, count in tables:
        if count:
            table = same(f"bert.embeddings.{theirs}.weight", count, hidden)
            yield Rule(f"embedding.{ours}.weight", (table,), rows if ours == "tokens" else 0)
    yield from _affine("embedding.norm", "bert.embeddings.LayerNorm", hidden)
    shapes = {"mlp.up": (inner, hidden), "mlp.down": (hidden, inner)}
    for index in range(model.num_layers):
        block, layer = f"layers.{index}", f"bert.encoder.layer.{index}"
        for kind, rest in (("weight", (hidden,)), ("bias", ())):
            names = (f"{layer}.attention.self.{part}.{kind}" for part in ("query", "key", "value"))
            parts = tuple(same(name, hidden, *rest) for name in names)
            yield Rule(f"{block}.attention.qkv.{kind}", parts)
        for name, part in _PARTS:
            usual = (hidden,) if name.endswith("norm") else (hidden, hidden)
            yield from _affine(f"{block}.{name}", f"{layer}.{part}", *shapes.get(name, usual))
    head = "cls.predictions"
    yield from _affine("head_transform.dense", f"{head}.transform.dense", hidden, hidden)
    yield from _affine("head_transform.norm", f"{head}.transform.LayerNorm", hidden)
    yield Rule("head.bias", (same(f"{head}.bias", model.vocab_size),), rows)
    if not model.tied_embeddings:
        own = same(f"{head}.decoder.weight", model.vocab_size, hidden)
        yield Rule("head.weight", (own,), rows)


def _affine(ours: str, theirs: str, *shape: int) -> Iterator[Rule]:
    """A weight of `shape` and its bias."""
    for kind, size in (("weight", shape), ("bias", shape[:1])):
        part: Part = same(f"{theirs}.{kind}", *size)
        yield Rule(f"{ours}.{kind}", (part,))


# The head's transform has the same activation.
_ACTIVATIONS = (("gelu", "gelu"), ("gelu_new", "gelu_tanh"), ("gelu_pytorch_tanh", "gelu_tanh"))

BERT = Family(
    model_type="bert",
    architecture="BertForMaskedLM",
    entries=(
        Equal("vocab_size", "vocab_size", 30522),
        Equal("max_position_embeddings", "sequence_length", 512),
        Equal("hidden_size", "hidden_size", 768),
        Equal("num_hidden_layers", "num_layers", 12),
        Equal("num_attention_heads", "num_heads", 12),
        Equal("intermediate_size", "ffn_hidden_size", 3072, resolved="ffn_size"),
        Equal("type_vocab_size", "token_types", 2),
        Equal("layer_norm_eps", "norm_epsilon", 1e-12),
        Equal("initializer_range", "init_std", 0.02),
        Equal("hidden_dropout_prob", "dropout", 0.1),
        Equal("attention_probs_dropout_prob", "attention_dropout", 0.1),
        Equal("tie_word_embeddings", "tied_embeddings", True),
        Choice("hidden_act", "activation", _ACTIVATIONS, "gelu"),
        Fixed("position_embedding_type", "absolute"),
        Fixed("is_decoder", False),
        Fixed("add_cross_attention", False),
    ),
    fields={
        "architecture": "encoder",
        "position": "learned",
        "norm": "layer_norm",
        "norm_position": "post",
        "bias": True,
        "embedding_norm": True,
        "head_transform": True,
        "head_bias": True,
    },
    tensors=_tensors,
    prefix="bert.",
    ignored=(r"bert\.embeddings\.position_ids",),
    dropped=(r"bert\.pooler\..*", r"cls\.seq_relationship\..*"),
    copies=(
        ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ),
    renamed=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    also=("BertForPreTraining",),
    harmless=frozenset(
        {
            "directionality",
            "pooler_fc_size",
            "pooler_num_attention_heads",
            "pooler_num_fc_layers",
            "pooler_size_per_head",
            "pooler_type",
        }
    ),
)
