"""Rows of the table: fields off their defaults, several at once, each on a layout.

rows.json holds rows that together have every pair of choices of two axes that any layout has, and
every choice of CHOICES together with every feature of a layout, and says of every pair that none
has which rule of the config refuses it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from roots.config import RunConfig, parse_config
from roots.config.batch import plan_batch
from roots.errors import RootsError
from tests.parallel.combinations import AXES, FEATURES, Layout, layouts
from tests.parallel.datasets import placed
from tests.parallel.fields import BASE, CHOICES, Choice

ROWS = Path(__file__).with_name("rows.json")
STEPS = 4
_SAMPLES = 8
_SHOWN = 4
# The rules never look at the data, so that any folder will do.
NOWHERE = Path("nowhere")
Pair = tuple[str, str]


@dataclass(frozen=True)
class Row:
    """Choices with what they need, and the layout that they meet."""

    choices: tuple[Choice, ...]
    layout: Layout

    @property
    def settings(self) -> dict[str, Any]:
        """All fields that are set besides the base, by dotted name."""
        settings = dict(required(self.layout))
        for choice in self.choices:
            settings.update(choice.settings)
        return settings

    @property
    def name(self) -> str:
        """The layout, and what makes another model of it."""
        kinds = [f"{each.value}" for each in self.choices if each.field in _TELLING]
        return ",".join([self.layout.name, *kinds])

    def pairs(self) -> set[Pair]:
        """Every choice with every feature."""
        return {(c.name, feature) for c in self.choices for feature in self.layout.features}


_TELLING = ("model.architecture", "data.objective", "model.position", "model.activation")


def required(layout: Layout) -> dict[str, Any]:
    """What a layout needs of the other sections to do what it says."""
    settings: dict[str, Any] = {}
    if layout["expert"] > 1:
        settings["model.moe.num_experts"] = 4
    if layout["recompute"] == "selective":
        # With fused attention nothing is stored, and nothing to be computed again.
        settings["ops.attention"] = "reference"
    return settings


def config_of(folder: Path, settings: Mapping[str, Any], layout: Layout) -> RunConfig:
    """The run of a row. Raises RootsError where a rule refuses it."""
    config = parse_config(_tree(folder, settings, layout))
    plan_batch(config, layout.ranks)
    return config


def reference_of(folder: Path, settings: Mapping[str, Any], layout: Layout) -> RunConfig:
    """The same run on one process, each step at once; ZeRO 1 where the loss is scaled."""
    tree = _tree(folder, settings, layout)
    halves = tree["training"]["precision"] == "fp16"
    tree["parallel"] = {"zero_stage": int(halves)}
    tree["training"]["micro_batch_size"] = tree["training"]["global_batch_size"]
    return parse_config(tree)


def _tree(folder: Path, settings: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    parts = layout["data"] * layout.micro_batches
    samples = max(_SAMPLES, parts)
    tree: dict[str, Any] = {
        "run": {"name": "test", "directory": str(folder)},
        "parallel": layout.parallel,
        "evaluation": {"every_steps": 1, "steps": 1},
        "checkpoint": {"every_steps": 0},
        "tracking": {"tensorboard": False},
    }
    depth = 2 if settings.get("model.architecture") == "encoder_decoder" else stages(layout)
    everything = {
        **BASE,
        "model.num_layers": max(2, depth),
        "training.steps": STEPS,
        "training.micro_batch_size": samples // parts,
        "training.global_batch_size": samples,
        **settings,
    }
    for name, value in everything.items():
        section = tree
        *path, field = name.split(".")
        for part in path:
            section = section.setdefault(part, {})
        section[field] = placed(value, folder) if name in ("data.train", "data.valid") else value
    return tree


def stages(layout: Layout) -> int:
    """Parts that the blocks are cut into."""
    return int(layout["pipeline"]) * (2 if layout.schedule == "dualpipev" else 1)


def joined(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any] | None:
    """Both together, or None where they say different things of one field."""
    if any(first[name] != value for name, value in second.items() if name in first):
        return None
    return {**first, **second}


def refusal(settings: Mapping[str, Any], layout: Layout) -> str:
    """What the config's rules say of `settings` on `layout`, in a line; "" if it is legal."""
    whole = joined(settings, required(layout))
    if whole is None:
        clash = [name for name, value in required(layout).items() if settings.get(name) != value]
        return f"the layout needs another {', '.join(clash)}"
    try:
        config_of(NOWHERE, whole, layout)
    except RootsError as error:
        return error.lines[0]
    return ""


@lru_cache(maxsize=1)
def legal_layouts() -> tuple[Layout, ...]:
    """Every combination that the config accepts for some model, the small ones first."""
    found = [layout for layout in layouts() if not refusal({}, layout)]
    return tuple(sorted(found, key=lambda layout: (layout.ranks, _busy(layout))))


def _busy(layout: Layout) -> int:
    """How many axes are on."""
    return sum(layout[name] != values[0] for name, values in AXES.items())


@lru_cache
def simplest(feature: str) -> tuple[Layout, ...]:
    """The first layouts with a feature, of the fewest ranks and axes: they show what refuses it."""
    return tuple(each for each in legal_layouts() if feature in each.features)[:_SHOWN]


def refused_pairs() -> dict[Pair, str]:
    """The pairs of a choice and a feature that the rules allow on none of its simplest layouts."""
    refused = {}
    for choice in CHOICES:
        for feature in FEATURES:
            said = [refusal(choice.settings, layout) for layout in simplest(feature)]
            if all(said):
                refused[choice.name, feature] = said[0]
    return refused


def all_pairs() -> set[Pair]:
    """Every choice with every feature."""
    return {(choice.name, feature) for choice in CHOICES for feature in FEATURES}


def read_rows(path: Path = ROWS) -> list[Row]:
    """The rows of the committed table."""
    by_name = {choice.name: choice for choice in CHOICES}
    return [
        Row(
            tuple(by_name[name] for name in each["choices"] if name in by_name),
            Layout(tuple(each["layout"][axis] for axis in AXES)),
        )
        for each in json.loads(path.read_text())["rows"]
    ]


def read_refused(path: Path = ROWS) -> dict[Pair, str]:
    """The refused pairs of the committed table, each with its rule."""
    refused = json.loads(path.read_text())["refused"]
    return {
        (choice, feature): rule
        for rule, pairs in refused.items()
        for choice, features in pairs.items()
        for feature in features
    }


def as_json(rows: Iterable[Row], refused: Mapping[Pair, str]) -> dict[str, Any]:
    """What rows.json holds."""
    by_rule: dict[str, dict[str, list[str]]] = {}
    for (choice, feature), rule in refused.items():
        by_rule.setdefault(rule, {}).setdefault(choice, []).append(feature)
    return {
        "rows": [
            {
                "layout": dict(zip(AXES, row.layout.values, strict=True)),
                "choices": [choice.name for choice in row.choices],
            }
            for row in rows
        ],
        "refused": by_rule,
    }
