"""Mixtral (Jiang et al. 2024, arXiv:2401.04088): Mistral with experts in place of MLPs."""

from __future__ import annotations

from collections.abc import Iterator

from roots.config.model import ModelConfig
from roots.exchange.hf.config_map import Equal, Fields, Fixed, Refusal, Tree, trained_with
from roots.exchange.hf.family import Family
from roots.exchange.hf.llama import COPIES, FIELDS, IGNORED, body_tensors, common_entries
from roots.exchange.hf.tensor_map import Rule, same


def _tensors(model: ModelConfig) -> Iterator[Rule]:
    yield from body_tensors(model)
    hidden, inner = model.hidden_size, model.expert_ffn_size
    for index in range(model.num_layers):
        ours, theirs = f"layers.{index}.mlp", f"model.layers.{index}.block_sparse_moe"
        router = same(f"{theirs}.gate.weight", model.moe.num_experts, hidden)
        yield Rule(f"{ours}.router.weight", (router,))
        for number in range(model.moe.num_experts):
            expert = f"{theirs}.experts.{number}"
            up = tuple(same(f"{expert}.{name}.weight", inner, hidden) for name in ("w1", "w3"))
            down = same(f"{expert}.w2.weight", hidden, inner)
            yield Rule(f"{ours}.experts.{number}.up.weight", up)
            yield Rule(f"{ours}.experts.{number}.down.weight", (down,))


class ExpertFields:
    """The section `moe`: every layer has experts, whose weights sum to 1, and no other MLP."""

    ours = (
        "moe.num_experts",
        "moe.top_k",
        "moe.ffn_hidden_size",
        "moe.balance_loss",
        "moe.normalise_weights",
    )

    def read(self, tree: Tree) -> Fields:
        """Experts, how many a token goes to, and the weight of the balancing loss."""
        top_k = tree.get("num_experts_per_tok", 2)
        section = {
            "num_experts": tree.get("num_local_experts", 8),
            "top_k": top_k,
            "balance_loss": tree.get("router_aux_loss_coef", 0.001),
            "normalise_weights": True,
        }
        return {"moe": section}

    def write(self, model: ModelConfig) -> Fields:
        """The same keys; `intermediate_size` is the width of an expert. Raises Refusal for weights
        that do not sum to 1."""
        moe = model.moe
        if not moe.normalises:
            name = "model.moe.normalise_weights"
            raise Refusal(name, False, "must be true", trained_with(name, True))
        return {
            "num_local_experts": moe.num_experts,
            "num_experts_per_tok": moe.top_k,
            "router_aux_loss_coef": moe.balance_loss,
        }


MIXTRAL = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    entries=(
        *common_entries(
            heads=8,
            length=4096 * 32,
            inner=14336,
            resolved_inner="expert_ffn_size",
            epsilon=1e-5,
            base=1e6,
        ),
        Equal("sliding_window", "window", None),
        Fixed("router_jitter_noise", 0.0),
        ExpertFields(),
    ),
    fields={**FIELDS, "bias": False},
    tensors=_tensors,
    prefix="model.",
    ignored=IGNORED,
    copies=COPIES,
)
