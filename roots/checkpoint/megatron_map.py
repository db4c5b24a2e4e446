"""GPTModel of Megatron-core against ROOTS: which of its tensors make which of ours."""

from __future__ import annotations

from collections.abc import Iterator

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
