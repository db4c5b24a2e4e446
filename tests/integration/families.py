"""Models and the layouts that train them: every pair of layouts of a family can hand over a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roots.config import RunConfig
from tests.helpers.runs import small_config, write_dataset
from tests.parallel.fields import BASE

# Steps of a run, and after how many of them it is handed over.
STEPS, HANDED_OVER = 6, 3
DATASETS = ("text", "more")


@dataclass(frozen=True)
class Layout:
    """How a model is cut. `micro_batch`: rows of one rank at a time, which may change as well."""

    name: str
    ranks: int
    parallel: dict[str, Any] = field(default_factory=dict)
    micro_batch: int = 2
    implementation: str = "torch"


@dataclass(frozen=True)
class Family:
    """A model with its layouts."""

    name: str
    model: dict[str, Any]
    layouts: tuple[Layout, ...]

    def layout(self, name: str) -> Layout:
        """The layout of that name."""
        return next(each for each in self.layouts if each.name == name)


FOLDED = {"pipeline_schedule": "dualpipev"}
RING = {"context_method": "ring"}
OFFLOADED = {"offload_optimizer": "cpu"}
_SINGLE = Layout("one", 1, {"zero_stage": 0}, 4)
# Norms, biases, grouped queries, gated feed-forwards and an embedding that is tied and padded.
_DECODER: dict[str, Any] = {
    "num_layers": 8,
    "num_heads": 8,
    "num_kv_heads": 4,
    "position": "rotary",
    "activation": "swiglu",
    "dropout": 0.1,
}
DECODER = Family(
    "decoder",
    _DECODER,
    (
        _SINGLE,
        Layout("one-zero2", 1, {"zero_stage": 2}, 1),
        Layout("tp2", 2, {"tensor": 2}),
        Layout("tp2-sp-zero0", 2, {"tensor": 2, "sequence": True, "zero_stage": 0}),
        Layout("pp2", 2, {"pipeline": 2}),
        Layout("pp2-folded", 2, {"pipeline": 2, **FOLDED}),
        Layout("dp2-zero0", 2, {"zero_stage": 0}, 4),
        Layout("dp2-zero1-offload", 2, {"zero_stage": 1, **OFFLOADED}, implementation="deepspeed"),
        Layout("dp2-zero2", 2, {"zero_stage": 2}, 1),
        Layout("dp2-zero3-offload", 2, {"zero_stage": 3, **OFFLOADED, "offload_parameters": "cpu"}),
        Layout("cp2-ulysses", 2, {"context": 2}),
        Layout("cp2-ring-zero3", 2, {**RING, "context": 2, "zero_stage": 3}),
        Layout("tp4", 4, {"tensor": 4}),
        Layout("pp4-zero0", 4, {"pipeline": 4, "zero_stage": 0}),
        Layout("pp4-folded", 4, {"pipeline": 4, **FOLDED}, 1),
        Layout("dp4-zero3", 4, {"zero_stage": 3}),
        Layout("tp2-dp2-zero2", 4, {"tensor": 2, "zero_stage": 2}),
        Layout("tp2-pp2-sp", 4, {"tensor": 2, "pipeline": 2, "sequence": True}),
        Layout("pp2-dp2-folded", 4, {"pipeline": 2, **FOLDED}, 1),
    ),
)
EXPERTS = Family(
    "experts",
    {
        "num_layers": 4,
        "num_heads": 4,
        "position": "rotary",
        "activation": "swiglu",
        "dropout": 0.1,
        "tied_embeddings": False,
        "moe": {"num_experts": 4, "ffn_hidden_size": 16, "num_shared_experts": 1},
    },
    (
        _SINGLE,
        Layout("ep2", 2, {"expert": 2}),
        Layout("ep2-cp2", 2, {"expert": 2, "context": 2}),
        Layout("dp2-zero3", 2, {"zero_stage": 3}),
        Layout("pp2-folded", 2, {"pipeline": 2, **FOLDED}),
        Layout("ep4-zero2", 4, {"expert": 4, "zero_stage": 2}),
        Layout("ep2-tp2", 4, {"expert": 2, "tensor": 2}),
        Layout("ep2-pp2", 4, {"expert": 2, "pipeline": 2}),
    ),
)
PAIRS = Family(
    "encoder-decoder",
    {
        "architecture": "encoder_decoder",
        "vocab_size": 67,
        "num_layers": 2,
        "num_encoder_layers": 2,
        "num_heads": 4,
        "position": "relative",
        "relative_buckets": 8,
        "norm": "rms_norm",
        "bias": False,
        "activation": "relu",
        "dropout": 0.1,
    },
    (
        _SINGLE,
        Layout("tp2", 2, {"tensor": 2}),
        Layout("pp2", 2, {"pipeline": 2}),
        Layout("dp2-zero2-offload", 2, {"zero_stage": 2, **OFFLOADED}),
        Layout("dp2-zero3", 2, {"zero_stage": 3}),
        Layout("pp4", 4, {"pipeline": 4}),
        Layout("tp2-pp2", 4, {"tensor": 2, "pipeline": 2}),
        Layout("tp2-dp2-zero3", 4, {"tensor": 2, "zero_stage": 3}),
    ),
)
FAMILIES = (DECODER, EXPERTS, PAIRS)


def write_datasets(folder: Path) -> Path:
    """Write what the runs blend below `folder`, and return it."""
    for number, name in enumerate(DATASETS):
        write_dataset(folder / name, seed=7 + number)
    return folder


def config_of(
    family: Family, layout: Layout, precision: str, folder: Path, name: str, **more: Any
) -> RunConfig:
    """A run `name` below `folder`, where its data lie too; `more` overrides fields by section.

    Clipping bites, dropout is on, the rate falls, and the loss scale doubles every two steps.
    """
    sections: dict[str, dict[str, Any]] = {}
    for key, value in BASE.items():
        section, _, name_of_field = key.partition(".")
        sections.setdefault(section, {})[name_of_field] = value
    sections["parallel"] = {"zero_persistence_threshold": 0, **layout.parallel}
    sections["model"] |= family.model
    sections["training"] |= {
        "steps": STEPS,
        "precision": precision,
        "micro_batch_size": layout.micro_batch,
        "global_batch_size": 8,
    }
    sections["optimizer"]["implementation"] = layout.implementation
    sections["loss_scale"] = {"initial_power": 8, "window": 2}
    sections["data"]["train"] = [
        {"prefix": str(folder / each), "weight": 2.0 - number}
        for number, each in enumerate(DATASETS)
    ]
    sections["run"] = {"name": name}
    sections["evaluation"] = {"every_steps": 0}
    sections["checkpoint"] = {"every_steps": 0, "keep_last": 0}
    for section, fields in more.items():
        sections.setdefault(section, {}).update(fields)
    return small_config(folder / DATASETS[0], folder, **sections)
