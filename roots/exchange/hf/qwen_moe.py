"""Qwen2-MoE (Qwen 2024) and Qwen3-MoE (Qwen 2025, arXiv:2505.09388): Qwen2 and 3 with experts.

Layers number N, 2 N, ... (`decoder_sparse_step`) have experts and the others an MLP; in Qwen2-MoE
every token also takes a share of one more expert, by a gate of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from roots.config.model import ModelConfig
from roots.exchange.hf.config_map import (
    Equal,
    Fields,
    Fixed,
    Refusal,
    Tree,
    shown,
    trained_with,
)
from roots.exchange.hf.family import Family
from roots.exchange.hf.llama import (
    COPIES,
    FIELDS,
    IGNORED,
    body_tensors,
    common_entries,
    mlp_tensors,
)
from roots.exchange.hf.tensor_map import Rule, same

_SHARED_WIDTH = "shared_expert_intermediate_size"


def _tensors(model: ModelConfig) -> Iterator[Rule]:
    yield from body_tensors(model)
    for index in range(model.num_layers):
        ours, theirs = f"layers.{index}.mlp", f"model.layers.{index}.mlp"
        if model.has_experts(index):
            yield from _experts(model, ours, theirs)
        else:
            yield from mlp_tensors(model, ours, theirs, model.ffn_size)


def _experts(model: ModelConfig, ours: str, theirs: str) -> Iterator[Rule]:
    hidden, count = model.hidden_size, model.moe.num_experts
    yield Rule(f"{ours}.router.weight", (same(f"{theirs}.gate.weight", count, hidden),))
    for number in range(count):
        names = f"{ours}.experts.{number}", f"{theirs}.experts.{number}"
        yield from mlp_tensors(model, *names, model.expert_ffn_size)
    if model.shared_ffn_size:
        names = f"{ours}.shared", f"{theirs}.shared_expert"
        yield from mlp_tensors(model, *names, model.shared_ffn_size)
        gate = same(f"{theirs}.shared_expert_gate.weight", 1, hidden)
        yield Rule(f"{ours}.shared_gate.weight", (gate,))


@dataclass(frozen=True)
class ExpertFields:
    """The section `moe`; with `shared`, of models with a gated shared expert.

    The others are what a config.json without the key means.
    """

    num_experts: int
    top_k: int
    width: int
    shared: bool

    @property
    def ours(self) -> tuple[str, ...]:
        """All that says what a layer computes."""
        names = ("num_experts", "top_k", "ffn_hidden_size", "balance_loss", "normalise_weights")
        shared = ("num_shared_experts", "shared_ffn_hidden_size", "shared_expert_gate")
        return tuple(f"moe.{name}" for name in (*names, "every", *(shared if self.shared else ())))

    def read(self, tree: Tree) -> Fields:
        """The section. Raises Refusal where single layers are without experts."""
        if dense := tree.get("mlp_only_layers"):
            fix = "ROOTS has experts in every n-th layer, so this model cannot be imported"
            raise Refusal("mlp_only_layers", dense, "must be empty", fix)
        section: Fields = {
            # transformers saves a Qwen3-MoE with the second name, and everyone reads the first.
            "num_experts": tree.get("num_experts", tree.get("num_local_experts", self.num_experts)),
            "top_k": tree.get("num_experts_per_tok", self.top_k),
            "ffn_hidden_size": tree.get("moe_intermediate_size", self.width),
            "balance_loss": tree.get("router_aux_loss_coef", 0.001),
            "normalise_weights": bool(tree.get("norm_topk_prob", False)),
            "every": tree.get("decoder_sparse_step", 1),
        }
        if self.shared:
            width = tree.get(_SHARED_WIDTH, 5632)
            section.update(num_shared_experts=1, shared_ffn_hidden_size=width)
            section["shared_expert_gate"] = True
        return {"moe": section}

    def write(self, model: ModelConfig) -> Fields:
        """The same keys. Raises Refusal without a shared expert, or without its gate."""
        moe = model.moe
        tree: Fields = {
            "num_experts": moe.num_experts,
            "num_experts_per_tok": moe.top_k,
            "moe_intermediate_size": model.expert_ffn_size,
            "router_aux_loss_coef": moe.balance_loss,
            "norm_topk_prob": moe.normalises,
            "decoder_sparse_step": moe.every,
            "mlp_only_layers": [],
        }
        if self.shared:
            if not moe.num_shared_experts:
                raise _missing("num_shared_experts", 0, 1)
            if not moe.shared_expert_gate:
                raise _missing("shared_expert_gate", False, True)
            tree[_SHARED_WIDTH] = model.shared_ffn_size
        return tree


class NoWindow:
    """Every layer sees all that came before."""

    ours = ()

    def read(self, tree: Tree) -> Fields:
        """Nothing. Raises Refusal for a window in any layer."""
        fix = "ROOTS has no windows beside experts of this kind, so this model cannot be imported"
        if tree.get("use_sliding_window", False):
            raise Refusal("use_sliding_window", True, "must be False", fix)
        kinds = set(tree.get("layer_types") or ())
        if kinds - {"full_attention"}:
            raise Refusal("layer_types", sorted(kinds), "must be full_attention everywhere", fix)
        return {}

    def write(self, model: ModelConfig) -> Fields:
        """That there is none."""
        return {"use_sliding_window": False}


def _missing(field: str, value: object, wanted: object) -> Refusal:
    name = f"model.moe.{field}"
    return Refusal(name, value, f"must be {shown(wanted)}", trained_with(name, wanted))


QWEN3_MOE = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    entries=(
        *common_entries(heads=4, length=32768, inner=6144),
        Fixed("attention_bias", False),
        NoWindow(),
        ExpertFields(num_experts=128, top_k=8, width=768, shared=False),
    ),
    fields={**FIELDS, "bias": False, "qk_norm": True},
    tensors=_tensors,
    prefix="model.",
    harmless=frozenset({"sliding_window"}),
    ignored=IGNORED,
    copies=COPIES,
)

QWEN2_MOE = Family(
    model_type="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    entries=(
        *common_entries(heads=16, length=32768, inner=5632),
        Equal("qkv_bias", "qkv_bias", True, resolved="has_qkv_bias"),
        NoWindow(),
        ExpertFields(num_experts=60, top_k=4, width=1408, shared=True),
    ),
    fields={**FIELDS, "bias": False},
    tensors=_tensors,
    prefix="model.",
    harmless=frozenset({"sliding_window"}),
    ignored=IGNORED,
    copies=COPIES,
)
