"""The rotary part of a config.json: `rope_parameters`, or before it `rope_theta`, `rope_scaling`.

transformers 5 keeps base, kind and scaling in `rope_parameters`; older ones had `rope_theta` and
`rope_scaling`, GPT-NeoX `rotary_emb_base` and `rotary_pct`. All are read; both forms are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from roots.config.model import ModelConfig
from roots.exchange.hf.config_map import Fields, Refusal, Tree, trained_with

# Their name of a scaling's parameter, ours, by kind.
_LENGTH = ("original_max_position_embeddings", "original_length")
_PARAMETERS: dict[str, tuple[tuple[str, str], ...]] = {
    "default": (),
    "linear": (("factor", "factor"),),
    "yarn": (
        ("factor", "factor"),
        _LENGTH,
        ("beta_fast", "beta_fast"),
        ("beta_slow", "beta_slow"),
        ("attention_factor", "attention_factor"),
    ),
    "llama3": (
        ("factor", "factor"),
        _LENGTH,
        ("low_freq_factor", "low_frequency"),
        ("high_freq_factor", "high_frequency"),
    ),
}
_KINDS = {"default": "none", "linear": "linear", "yarn": "yarn", "llama3": "llama3"}
# What else may stand there, and the value that it must have.
_HARMLESS = {"mscale": None, "mscale_all_dim": None, "truncate": True}
# Parameters of the other kinds have no effect there either.
_KNOWN = {
    *("rope_type", "type", "rope_theta", "partial_rotary_factor"),
    *(theirs for pairs in _PARAMETERS.values() for theirs, _ in pairs),
}


@dataclass(frozen=True)
class Rotary:
    """Base, rotated share and scaling.

    base_key, fraction_key: where older config.json have them
    base, fraction:         those of a config.json that names none
    partial:                whether the architecture can rotate less than the whole head
    """

    base_key: str = "rope_theta"
    fraction_key: str = "partial_rotary_factor"
    base: float = 10000.0
    fraction: float = 1.0
    partial: bool = False

    @property
    def ours(self) -> tuple[str, ...]:
        """Three fields and a section of `model`."""
        return ("rotary_base", "rotary_fraction", "rotary_scaling")

    def read(self, tree: Tree) -> Fields:
        """Fields of `model`. Raises Refusal for a kind of scaling that ROOTS does not have."""
        found = _found(tree)
        base = found.get("rope_theta", tree.get(self.base_key, self.base))
        fallback = tree.get(self.fraction_key, self.fraction)
        fraction = found.get("partial_rotary_factor", fallback)
        if fraction != 1.0 and not self.partial:
            fix = "this architecture rotates whole heads in ROOTS"
            raise Refusal("partial_rotary_factor", fraction, "must be 1.0", fix)
        fields = {"rotary_base": base, "rotary_fraction": fraction}
        scaling = _scaling(found, tree)
        return {**fields, "rotary_scaling": scaling} if scaling else fields

    def write(self, model: ModelConfig) -> Fields:
        """Keys of config.json for old and new readers. Raises Refusal."""
        scaling, base = model.rotary_scaling, model.rotary_base
        if model.rotary_fraction != 1.0 and not self.partial:
            name = "model.rotary_fraction"
            raise Refusal(name, model.rotary_fraction, "must be 1.0", trained_with(name, 1.0))
        kind = "default"
        if scaling.kind == "ntk":
            # A larger base for every length; their "dynamic" changes it with the length instead.
            size = model.rotary_size
            base *= scaling.factor ** (size / (size - 2))
        elif scaling.kind != "none":
            kind = scaling.kind
        pairs = {theirs: getattr(scaling, ours) for theirs, ours in _PARAMETERS[kind]}
        parameters = {name: value for name, value in pairs.items() if value is not None}
        written: Fields = {
            "rope_parameters": {"rope_type": kind, "rope_theta": base, **parameters},
            self.base_key: base,
        }
        if self.partial:
            written["rope_parameters"]["partial_rotary_factor"] = model.rotary_fraction
            written[self.fraction_key] = model.rotary_fraction
        if kind != "default":
            written["rope_scaling"] = dict(written["rope_parameters"])
        return written


def _found(tree: Tree) -> Mapping[str, Any]:
    """The parameters, in the older place if there are any. Raises Refusal for those of a layer."""
    places = ("rope_scaling", "rope_parameters")
    # Both are asked for, so that neither counts as a key that nobody knows.
    name, found = next(
        (item for item in [(name, tree.get(name)) for name in places] if item[1]), ("", {})
    )
    fix = "ROOTS has one scaling for all layers, so this model cannot be imported"
    if not isinstance(found, Mapping):
        raise Refusal(name, found, "must be an object", fix)
    for key, value in found.items():
        if isinstance(value, Mapping):
            raise Refusal(f"{name}.{key}", dict(value), "must be one value", fix)
    return found


def _scaling(found: Mapping[str, Any], tree: Tree) -> Fields:
    """The section `rotary_scaling`, {} without one."""
    kind = found.get("rope_type", found.get("type", "default"))
    if not isinstance(kind, str) or kind not in _PARAMETERS:
        rule = f"must be one of {', '.join(_PARAMETERS)}"
        fix = "ROOTS cannot compute such frequencies, so this model cannot be imported"
        raise Refusal("rope_type", kind, rule, fix)
    fix = "ROOTS has no field for it, so this model cannot be imported"
    for key, value in found.items():
        if value is None or key in _KNOWN:
            continue
        if key not in _HARMLESS:
            raise Refusal(f"rope_parameters.{key}", value, "is no parameter that ROOTS knows", fix)
        if _HARMLESS[key] != value:
            raise Refusal(f"rope_parameters.{key}", value, f"must be {_HARMLESS[key]}", fix)
    # transformers gives the model's own key precedence (Phi-3 has it there).
    length = tree.get(_LENGTH[0]) or found.get(_LENGTH[0]) or tree.get("max_position_embeddings")
    if kind == "default":
        return {}
    names = dict(_PARAMETERS[kind])
    given = {ours: found[theirs] for theirs, ours in names.items() if found.get(theirs) is not None}
    if _LENGTH[0] in names:
        given[_LENGTH[1]] = length
    return {"kind": _KINDS[kind], **given}
