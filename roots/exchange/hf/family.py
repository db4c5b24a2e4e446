"""An architecture of Hugging Face: its config.json and its tensors against those of ROOTS."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from roots.config.model import RESOLVED_FIELDS, ModelConfig
from roots.config.unread_fields import field_names, field_of, idle_fields, with_fields
from roots.exchange.hf.config_map import (
    NULL_IS_A_VALUE,
    AskedKeys,
    Entry,
    Fields,
    Refusal,
    Tree,
    shown,
    trained_with,
)
from roots.exchange.hf.harmless_keys import HARMLESS_KEYS, HARMLESS_VALUES
from roots.exchange.hf.tensor_map import Rule

# Fields that say how a model is trained or stored, not what it computes: capacity is for training.
_FREE = frozenset(
    {
        "vocab_multiple",
        "dropout",
        "attention_dropout",
        "init_std",
        "moe.capacity_factor",
        "moe.z_loss",
    }
)


@dataclass(frozen=True)
class Family:
    """One architecture.

    model_type, architecture: its two names in config.json
    entries:                  keys of config.json with the fields of `model` that they set
    fields:                   fields of `model` that have one value in this architecture
    unused:                   fields of `model` that only say how long samples are in training
    tensors:                  the rules of all tensors of a model
    prefix:                   what the names of its body begin with; files of a bare body lack it
    ignored:                  patterns of tensors that hold no weights, such as masks
    dropped:                  patterns of tensors of heads that ROOTS does not have
    copies:                   tensors that some files hold twice: the copy, and what it must equal
    renamed:                  (pattern, replacement) of tensor names in older files
    also:                     other architectures of the same body whose extra heads are dropped
    harmless:                 keys of config.json that change nothing that ROOTS computes
    constants:                keys of config.json that are written and never asked for
    """

    model_type: str
    architecture: str
    entries: tuple[Entry, ...]
    fields: Mapping[str, Any]
    tensors: Callable[[ModelConfig], Iterable[Rule]]
    prefix: str
    unused: frozenset[str] = field(default_factory=frozenset)
    ignored: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    copies: tuple[tuple[str, str], ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    also: tuple[str, ...] = ()
    harmless: frozenset[str] = field(default_factory=frozenset)
    constants: Mapping[str, Any] = field(default_factory=dict)

    def read_config(self, tree: Tree) -> tuple[Fields, list[Refusal]]:
        """Fields of `model` from config.json, and everything that ROOTS cannot express.

        A null means what a missing key does, but where `NULL_IS_A_VALUE`. Keys that nobody reads
        are refused, unless it is known that they change nothing, or they are null.
        """
        given = {
            key: value for key, value in tree.items() if value is not None or key in NULL_IS_A_VALUE
        }
        asked = AskedKeys(given)
        fields, refusals = dict(self.fields), []
        for entry in self.entries:
            try:
                fields.update(entry.read(asked))
            except Refusal as refusal:
                refusals.append(refusal)
            except (TypeError, ValueError, AttributeError, ArithmeticError):
                # An entry computes with values of the types that its keys have.
                key, fix = asked.last_key, "copy it again from where the model comes from"
                refusals.append(Refusal(key, given.get(key), "is of no type that fits it", fix))
        known = HARMLESS_KEYS | self.harmless | self.constants.keys() | asked.keys_asked_for
        for key in sorted(given.keys() - known):
            if key in HARMLESS_VALUES and given[key] == HARMLESS_VALUES[key]:
                continue
            if key == "layer_types" and _are_alike(given[key], fields.get("window")):
                continue
            # By custom, what begins so tells how the file was made.
            if given[key] is not None and not key.startswith("_"):
                fix = "remove the key if the model is the same without it"
                rule = f"is unknown for {self.model_type}, so it may change what the model computes"
                refusals.append(Refusal(key, given[key], rule, fix))
        return fields, refusals

    def write_config(self, model: ModelConfig) -> tuple[Fields, list[Refusal]]:
        """config.json of `model`, and everything that this architecture cannot express."""
        tree: Fields = {"architectures": [self.architecture], "model_type": self.model_type}
        tree.update(self.constants)
        refusals = list(self._misfits(model))
        for entry in self.entries:
            try:
                tree.update(entry.write(model))
            except Refusal as refusal:
                refusals.append(refusal)
        return tree, refusals

    def is_ignored(self, name: str) -> bool:
        """Whether a tensor of a model file carries no weights of its own."""
        return any(re.fullmatch(pattern, name) for pattern in (*self.ignored, *self.dropped))

    def name_of(self, name: str) -> str:
        """The present name of a tensor that older files spell otherwise."""
        for pattern, replacement in self.renamed:
            name = re.sub(pattern, replacement, name)
        return name

    @property
    def has_experts(self) -> bool:
        """Whether models of this architecture have experts in place of MLPs."""
        return "moe.num_experts" in self._covered

    @property
    def _covered(self) -> frozenset[str]:
        """Fields and sections that entries read and write, or that may have any value."""
        return self.unused | _FREE | {name for entry in self.entries for name in entry.ours}

    def _misfits(self, model: ModelConfig) -> Iterator[Refusal]:
        """Fields that have another value than this architecture's."""
        covered = self._covered
        plain = ModelConfig().model_copy(update=dict(self.fields))
        wanted: dict[str, Any] = {}
        for name in field_names():
            if name in covered or name.rpartition(".")[0] in covered:
                continue
            # A null field stands for what follows from the others.
            usual = model.model_copy(update={name: None}) if name in RESOLVED_FIELDS else plain
            expected = field_of(usual, RESOLVED_FIELDS.get(name, name))
            if _resolved(model, name) != expected:
                wanted[name] = expected
        # Some matter only because of others that must change too.
        settled = idle_fields(with_fields(model, wanted))
        for name, expected in wanted.items():
            if name not in settled:
                key, rule = f"model.{name}", f"must be {shown(expected)}"
                yield Refusal(key, _resolved(model, name), rule, trained_with(key, expected))


def _are_alike(layer_types: object, window: object) -> bool:
    """Whether all layers have the attention that follows from `window`."""
    kind = "full_attention" if window is None else "sliding_attention"
    return isinstance(layer_types, list) and all(each == kind for each in layer_types)


def _resolved(model: ModelConfig, name: str) -> Any:
    return field_of(model, RESOLVED_FIELDS.get(name, name))
