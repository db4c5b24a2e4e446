"""GPTModel of Megatron-core against ROOTS: which of its tensors make which of ours."""

from __future__ import annotations

from collections.abc import Iterator

from roots.config.model import ModelConfig
from roots.exchange.hf.tensor_map import Part, Rule, same, taken

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
        ours, theirs = f"layers.{index}", f"decoder.layers.{index}"
        yield from _attention(model, ours, theirs)
        yield from _norm(model, f"{ours}.mlp_norm", f"{theirs}.mlp.linear_fc1.layer_norm_", hidden)
        if model.has_experts(index):
            yield from _experts(model, f"{ours}.mlp", f"{theirs}.mlp")
        else:
            yield from _mlp(model, f"{ours}.mlp", f"{theirs}.mlp", model.ffn_size)
    yield from _norm(model, "final_norm", "decoder.final_layernorm.", hidden)
    if not model.tied_embeddings:
        yield Rule("head.weight", (table(_HEAD),), rows)


def _attention(model: ModelConfig, ours: str, theirs: str) -> Iterator[Rule]:
    hidden = model.hidden_size
    attention = f"{theirs}.self_attention"
    yield from _norm(model, f"{ours}.attention_norm", f"{attention}.linear_qkv.layer_norm_", hidden)
    qkv = f"{attention}.linear_qkv"
    yield Rule(f"{ours}.attention.qkv.weight", _by_group(model, f"{qkv}.weight", hidden))
    if model.has_qkv_bias:
        yield Rule(f"{ours}.attention.qkv.bias", _by_group(model, f"{qkv}.bias"))
    if model.qk_norm:
        for name, part in (("query_norm", "q_layernorm"), ("key_norm", "k_layernorm")):
            where = f"{attention}.{part}."
            yield from _norm(model, f"{ours}.attention.{name}", where, model.head_size)
    sizes = (hidden, model.num_heads * model.head_size)
    yield from _linear(model, f"{ours}.attention.output", f"{attention}.linear_proj", *sizes)


def _mlp(model: ModelConfig, ours: str, theirs: str, width: int) -> Iterator[Rule]:
    """An MLP of that inner width; an expert is one too, whose configs have no biases."""
    inner, hidden = width * (2 if model.gated else 1), model.hidden_size
    yield from _linear(model, f"{ours}.up", f"{theirs}.linear_fc1", inner, hidden)
    yield from _linear(model, f"{ours}.down", f"{theirs}.linear_fc2", hidden, width)


def _experts(model: ModelConfig, ours: str, theirs: str) -> Iterator[Rule]:
    hidden, count = model.hidden_size, model.moe.num_experts
    yield Rule(f"{ours}.router.weight", (same(f"{theirs}.router.weight", count, hidden),))
    for number in range(count):
        expert = f"{theirs}.experts.experts.{number}"
        yield from _mlp(model, f"{ours}.experts.{number}", expert, model.expert_ffn_size)
    if model.shared_ffn_size:
        shared = f"{theirs}.shared_experts"
        yield from _mlp(model, f"{ours}.shared", shared, model.shared_ffn_size)
        if model.moe.shared_expert_gate:
            gate = same(f"{shared}.gate_weight", 1, hidden)
            yield Rule(f"{ours}.shared_gate.weight", (gate,))


def _linear(
    model: ModelConfig, ours: str, theirs: str, out_size: int, in_size: int
) -> Iterator[Rule]:
    yield Rule(f"{ours}.weight", (same(f"{theirs}.weight", out_size, in_size),))
    if model.bias:
        yield Rule(f"{ours}.bias", (same(f"{theirs}.bias", out_size),))


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
