"""Which fields of `model` the model at hand does not read, as a table; sections by dotted names.

An idle field has no effect under the values of the others: the parameters and every number that is
computed stay what they are, whatever it says. A test builds models and holds the table to that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from roots.config.model import ModelConfig
from roots.config.moe import MoEConfig
from roots.config.rotary import RotaryKind
from roots.config.section import Section


@dataclass(frozen=True)
class Reading:
    """Fields that are read only by models for which `when` holds."""

    when: Callable[[ModelConfig], bool]
    fields: tuple[str, ...]


def _stretched_by(*kinds: RotaryKind) -> Callable[[ModelConfig], bool]:
    return lambda model: model.rotary_scaling.kind in kinds


READINGS: tuple[Reading, ...] = (
    Reading(
        lambda model: model.architecture == "encoder_decoder",
        ("num_encoder_layers", "source_length"),
    ),
    Reading(
        lambda model: model.position == "relative",
        ("relative_buckets", "relative_max_distance"),
    ),
    Reading(
        lambda model: model.position == "rotary",
        ("rotary_base", "rotary_fraction", "rotary_scaling.kind"),
    ),
    Reading(_stretched_by("linear", "ntk", "yarn", "llama3"), ("rotary_scaling.factor",)),
    Reading(_stretched_by("yarn", "llama3"), ("rotary_scaling.original_length",)),
    Reading(
        _stretched_by("llama3"),
        ("rotary_scaling.low_frequency", "rotary_scaling.high_frequency"),
    ),
    Reading(
        _stretched_by("yarn"),
        tuple(f"rotary_scaling.{n}" for n in ("beta_fast", "beta_slow", "attention_factor")),
    ),
    Reading(
        lambda model: model.moe.num_experts > 0,
        tuple(f"moe.{name}" for name in MoEConfig.model_fields if name != "num_experts"),
    ),
    Reading(
        lambda model: model.moe.num_shared_experts > 0,
        ("moe.shared_ffn_hidden_size", "moe.shared_expert_gate"),
    ),
    # Where every block has experts of a width of their own, there is no dense MLP.
    Reading(
        lambda model: (
            model.moe.num_experts == 0 or model.moe.every > 1 or model.moe.ffn_hidden_size is None
        ),
        ("ffn_hidden_size",),
    ),
)


def field_names() -> Iterator[str]:
    """All fields of `model`; those of a section as section.field."""
    for name, value in ModelConfig():
        if isinstance(value, Section):
            yield from (f"{name}.{inner}" for inner in type(value).model_fields)
        else:
            yield name


def idle_fields(model: ModelConfig) -> frozenset[str]:
    """The fields that `model` does not read."""
    found: frozenset[str] = frozenset()
    # A field that is idle itself may decide about others, so from the first to what follows.
    while True:
        plain = with_fields(model, {name: default_of(name) for name in found})
        idle = {name for each in READINGS if not each.when(plain) for name in each.fields}
        if idle <= found:
            return found
        found |= idle


def without_idle_fields(model: ModelConfig) -> ModelConfig:
    """The same model, with the default in every field that it does not read."""
    return with_fields(model, {name: default_of(name) for name in idle_fields(model)})


def field_of(model: ModelConfig, name: str) -> Any:
    """The value of a field by its dotted name."""
    section, _, inner = name.rpartition(".")
    return getattr(getattr(model, section) if section else model, inner)


def default_of(name: str) -> Any:
    """The default of a field by its dotted name."""
    return field_of(ModelConfig(), name)


def with_fields(model: ModelConfig, values: Mapping[str, Any]) -> ModelConfig:
    """`model` with other values, by dotted names, which are not checked again."""
    for name, value in values.items():
        section, _, inner = name.rpartition(".")
        if section:
            changed = getattr(model, section).model_copy(update={inner: value})
            model = model.model_copy(update={section: changed})
        else:
            model = model.model_copy(update={inner: value})
    return model
