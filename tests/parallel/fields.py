"""Values off the default of every field that changes numbers, for the table of layouts.

A field of the sections in SECTIONS stands in CHOICES with what a small run can have besides the
base, or in EXEMPT with the reason why it needs no row. Values of `data.train` and `data.valid` are
names of DATASETS, which tests/parallel/datasets.py writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from roots.config import RunConfig
from roots.config.section import is_section

SECTIONS = ("model", "training", "optimizer", "schedule", "loss_scale", "data", "ops")
# The run of every row where it says nothing else: what a test of seconds needs off the default.
# Clipping bites. Adam divides a gradient by its own size, and what is zero but for rounding becomes
# noise, in biases above all, which start at zero and are the sum of updates: with a learning rate
# of 1e-3 and an epsilon of 1e-4 that noise stays ten times below the tolerance.
BASE: dict[str, Any] = {
    "model.hidden_size": 32,
    "model.num_heads": 4,
    "model.vocab_size": 61,
    "model.vocab_multiple": 8,
    "model.sequence_length": 16,
    "training.precision": "fp32",
    "training.gradient_clipping": 0.5,
    "optimizer.learning_rate": 1e-3,
    "optimizer.epsilon": 1e-4,
    "optimizer.implementation": "torch",
    "schedule.warmup_steps": 2,
    "schedule.min_learning_rate": 1e-4,
    "data.train": ["text"],
}


@dataclass(frozen=True)
class Choice:
    """One value of one field, and what else must be set for it to be legal and to matter."""

    field: str
    value: Any
    needs: Mapping[str, Any] = field(default_factory=dict)
    # Tells two choices of one value apart.
    when: str = ""

    @property
    def name(self) -> str:
        """As an override spells it, and when."""
        return f"{self.field}={json.dumps(self.value)}" + (f" ({self.when})" if self.when else "")

    @property
    def halves(self) -> bool:
        """Whether it is about fp16, so that it stands in rows of its own."""
        return self.needs.get("training.precision") == "fp16"

    @property
    def settings(self) -> dict[str, Any]:
        """The value with its needs, by dotted field."""
        return {**self.needs, self.field: self.value}


_EXPERTS = {"model.moe.num_experts": 4}
_SHARED = {**_EXPERTS, "model.moe.num_shared_experts": 1}
_DECODER = {"model.architecture": "decoder"}
# The last tokens, which the data does not have, hide others.
_PAIR = {"model.architecture": "encoder_decoder", "model.vocab_size": 67}
_ENCODER = {"model.architecture": "encoder", "model.vocab_size": 67}
_SPANS = {**_PAIR, "data.objective": None}
_TRANSLATION = {
    **_PAIR,
    "data.objective": "pairs",
    "data.train": ["pairs"],
    "data.valid": [],
}
_ROTARY = {"model.position": "rotary"}
_RELATIVE = {"model.position": "relative", "model.relative_buckets": 8}
_HALVES = {"training.precision": "fp16"}


def _stretched(kind: str) -> dict[str, Any]:
    """Rotary positions of a model that began with half the tokens."""
    return {
        **_ROTARY,
        "model.rotary_scaling.kind": kind,
        "model.rotary_scaling.factor": 2.0,
        "model.rotary_scaling.original_length": 8,
    }


def _off(
    name: str, *values: Any, needs: Mapping[str, Any] | None = None, when: str = ""
) -> list[Choice]:
    return [Choice(name, value, needs or {}, when) for value in values]


def _stretch(name: str, value: Any, kind: str) -> list[Choice]:
    return _off(f"model.rotary_scaling.{name}", value, needs=_stretched(kind))


# With a small base and a long original, so that frequencies lie on both sides of the two bounds.
_LONG_YARN = {
    **_stretched("yarn"),
    "model.rotary_base": 10.0,
    "model.rotary_scaling.original_length": 64,
}
_SHAPES = [
    *_off("model.architecture", "encoder_decoder", needs=_SPANS),
    *_off("model.architecture", "encoder", needs=_ENCODER),
    *_off("model.hidden_size", 48),
    *_off("model.num_layers", 5),
    *_off("model.num_encoder_layers", 3, needs=_PAIR),
    *_off("model.num_heads", 8),
    *_off("model.num_kv_heads", 2),
    *_off("model.head_dim", 12),
    *_off("model.ffn_hidden_size", 48),
    *_off("model.vocab_size", 67),
    *_off("model.vocab_multiple", 12),
    *_off("model.sequence_length", 24),
    *_off("model.source_length", 20, needs=_PAIR),
    *_off("model.token_types", 2),
    *_off("model.init_std", 0.04),
]
_POSITIONS = [
    *_off("model.position", "rotary", "sinusoidal", "alibi", "relative", "none"),
    *_off("model.relative_buckets", 8, needs={"model.position": "relative"}),
    *_off("model.relative_max_distance", 10, needs=_RELATIVE),
    *_off("model.rotary_base", 100.0, needs=_ROTARY),
    *_off("model.rotary_fraction", 0.5, needs=_ROTARY),
    *[
        each
        for kind in ("linear", "ntk", "yarn", "llama3")
        for each in _stretch("kind", kind, kind)
    ],
    *_stretch("factor", 2.0, "linear"),
    *_stretch("original_length", 8, "yarn"),
    *_stretch("low_frequency", 0.5, "llama3"),
    *_stretch("high_frequency", 2.0, "llama3"),
    *_off("model.rotary_scaling.beta_fast", 4.0, needs=_LONG_YARN),
    *_off("model.rotary_scaling.beta_slow", 3.0, needs=_LONG_YARN),
    *_stretch("attention_factor", 1.2, "yarn"),
]
_BLOCKS = [
    *_off("model.window", 5),
    *_off("model.parallel_residual", True),
    # Without positions or biases of its own a normalised key has a bias that changes nothing.
    *_off("model.qk_norm", True, needs=_ROTARY),
    *_off("model.norm", "rms_norm"),
    *_off("model.norm_position", "post"),
    *_off("model.norm_epsilon", 1e-3),
    *_off("model.norm_zero_centred", True),
    *_off("model.activation", "gelu_tanh", "relu", "swiglu", "geglu", "geglu_tanh"),
    *_off("model.bias", False),
    *_off("model.qkv_bias", True, needs={"model.bias": False}),
    *_off("model.qkv_bias", False, needs={"model.bias": True}),
    *_off("model.attention_scale", 0.6),
    *_off("model.dropout", 0.1),
    *_off("model.attention_dropout", 0.1),
]
_ENDS = [
    *_off("model.tied_embeddings", False),
    *_off("model.embedding_scale", 3.0),
    *_off("model.embedding_norm", True),
    *_off("model.head_transform", True),
    *_off("model.head_bias", True),
    *_off("model.head_scale", 0.7),
    *_off("training.label_smoothing", 0.1),
    *_off("training.z_loss", 1e-2),
]
_MIXTURES = [
    *_off("model.moe.num_experts", 4),
    *_off("model.moe.top_k", 1, 3, needs=_EXPERTS),
    *_off("model.moe.ffn_hidden_size", 16, needs=_EXPERTS),
    *_off("model.moe.num_shared_experts", 1, needs=_EXPERTS),
    *_off("model.moe.shared_ffn_hidden_size", 24, needs=_SHARED),
    *_off("model.moe.shared_expert_gate", True, needs=_SHARED),
    *_off("model.moe.capacity_factor", 1.0, needs=_EXPERTS),
    *_off("model.moe.balance_loss", 0.2, needs=_EXPERTS),
    *_off("model.moe.z_loss", 0.01, needs=_EXPERTS),
    *_off("model.moe.normalise_weights", False, needs={**_EXPERTS, "model.moe.top_k": 2}),
    # Of one expert the weight is then 1, and the balance all that its router learns.
    *_off(
        "model.moe.normalise_weights",
        True,
        needs={**_EXPERTS, "model.moe.top_k": 1, "model.moe.balance_loss": 0.2},
    ),
    *_off("model.moe.every", 2, needs={**_EXPERTS, "model.num_layers": 4}),
]
_STEPS = [
    *_off("training.seed", 7),
    *_off("training.gradient_clipping", 0.0),
    *_off("optimizer.learning_rate", 2e-3),
    *_off("optimizer.weight_decay", 0.0, 0.5),
    *_off("optimizer.beta1", 0.7),
    *_off("optimizer.beta2", 0.8),
    *_off("optimizer.epsilon", 1e-3),
    # Half way down a cosine is where a line is.
    *_off("schedule.name", "linear", needs={"schedule.warmup_steps": 1}),
    *_off("schedule.name", "constant", "inverse_sqrt", "wsd"),
    *_off("schedule.warmup_steps", 1),
    *_off("schedule.warmup_tokens", 300, needs={"schedule.warmup_steps": 0}),
    *_off("schedule.decay_steps", 3, needs={"schedule.name": "cosine"}),
    *_off("schedule.decay_tokens", 400, needs={"schedule.name": "linear"}),
    *_off("schedule.min_learning_rate", 5e-4, needs={"schedule.name": "cosine"}),
]
# An overflow in the second step, where a test makes one: halved at once, doubled two steps later,
# and the floor is no power of two, so that a halved scale shows it.
_AT_FLOOR = {**_HALVES, "loss_scale.initial_power": 8, "loss_scale.hysteresis": 1}
_LOSS_SCALES = [
    *_off("loss_scale.initial_power", 8, needs=_HALVES),
    *_off("loss_scale.window", 1, needs=_HALVES),
    *_off("loss_scale.hysteresis", 1, needs=_HALVES),
    *_off("loss_scale.minimum", 200.0, needs=_AT_FLOOR),
]
_DATA = [
    *_off("data.objective", "pairs", needs=_TRANSLATION),
    *_off("data.train", [{"prefix": "text", "weight": 2.0}, {"prefix": "more", "weight": 1.0}]),
    *_off("data.valid", ["more"]),
    *_off("data.split", [1.0, 1.0, 0.0], needs={"data.valid": []}),
    *_off("data.separate_documents", False, needs=_DECODER),
    *_off("data.reset_positions", True, needs={"model.position": "learned"}, when="learned"),
    *_off("data.reset_positions", True, needs=_ROTARY, when="rotary"),
    # Ranks of a context axis then count different numbers of tokens.
    *_off("data.mask_document_end", True, needs=_DECODER),
    *_off("data.begin_token", 3, needs=_PAIR),
    *_off("data.mask_token", 62, needs=_ENCODER),
    *_off("data.sentinel_token", 65, needs=_SPANS),
    *_off("data.noise_density", 0.3, needs=_SPANS, when="spans"),
    *_off("data.noise_density", 0.3, needs=_ENCODER, when="masked"),
    *_off("data.mean_span", 2.0, needs=_SPANS),
    *_off("data.pad_multiple", 2, needs=_TRANSLATION),
    *_off("data.group_batches", 2, needs={**_TRANSLATION, "data.pad_multiple": 2}),
    *_off("data.num_workers", 1),
]
_OPS = [
    *_off("ops.attention", "reference"),
    # Its mask of dropout would depend on the layout, which the op refuses.
    *_off("ops.attention", "torch_sdpa", needs={"model.attention_dropout": 0.0}),
    *_off("ops.layer_norm", "torch", "reference", needs={"model.norm": "layer_norm"}),
    *_off("ops.rms_norm", "torch", "reference", needs={"model.norm": "rms_norm"}),
    *_off("ops.rotary", "torch", "reference", needs=_ROTARY),
    *_off("ops.bias_gelu", "torch", "reference", needs={"model.activation": "gelu_tanh"}),
    *_off("ops.swiglu", "torch", "reference", needs={"model.activation": "swiglu"}),
    *_off("ops.dropout", "torch", "reference", needs={"model.dropout": 0.1}),
    *_off("ops.cross_entropy", "torch", "reference"),
    *_off("ops.check_finite", "torch", "reference"),
]
CHOICES: tuple[Choice, ...] = (
    *_SHAPES,
    *_POSITIONS,
    *_BLOCKS,
    *_ENDS,
    *_MIXTURES,
    *_STEPS,
    *_LOSS_SCALES,
    *_DATA,
    *_OPS,
)

EXEMPT: dict[str, str] = {
    "training.steps": "how long a run lasts; schedules that depend on it have choices",
    "training.precision": "fp16 in the rows of loss_scale, bf16 in test_layouts.py",
    "training.micro_batch_size": "an axis of the table: split",
    "training.global_batch_size": "an axis of the table: split",
    "optimizer.name": "has one value",
    "optimizer.implementation": "the same formula by other kernels: tests/training/engine",
    "data.phase": "a seed of its own, as of training.seed; what it does to a resumed run: "
    "tests/integration/test_phases.py",
    "data.tokenizer": "a path; tells the size of the vocabulary",
    "data.cache_directory": "a path",
}


def fields_of_schema() -> Iterator[str]:
    """The dotted names of all fields of SECTIONS, nested sections included."""
    for section in SECTIONS:
        yield from _fields_below(RunConfig.model_fields[section].annotation, section)


def _fields_below(section: Any, path: str) -> Iterator[str]:
    for name, info in section.model_fields.items():
        if is_section(info.annotation):
            yield from _fields_below(info.annotation, f"{path}.{name}")
        else:
            yield f"{path}.{name}"


def unlisted_fields() -> list[str]:
    """What to do about every field of the schema that is neither in CHOICES nor in EXEMPT."""
    listed = {choice.field for choice in CHOICES} | EXEMPT.keys()
    return [
        f"{name}: add a value off its default to CHOICES of tests/parallel/fields.py, or to EXEMPT "
        "the reason why it meets no layout, then run `python -m tests.parallel.generate`"
        for name in fields_of_schema()
        if name not in listed
    ]
