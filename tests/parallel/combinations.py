"""Every legal combination of the parallel axes, and few that cover all pairs or more of values.

The config's own rules decide what is legal, so that an axis joins by its values in AXES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from math import prod
from typing import Any, Protocol, TypeVar

# In the order in which a row shows them; first values are "off". `data`: ranks over which samples
# are spread; `split`: whether a step has several micro-batches; the others: fields of `parallel`.
AXES: dict[str, tuple[Any, ...]] = {
    "tensor": (1, 2, 4),
    "sequence": (False, True),
    "context": (1, 2),
    "context_method": ("ulysses", "ring"),
    "pipeline": (1, 2, 4),
    "pipeline_schedule": ("1f1b", "dualpipev"),
    "data": (1, 2, 4),
    "expert": (1, 2),
    "zero_stage": (0, 1, 2, 3),
    "recompute": ("none", "selective", "full"),
    "split": (False, True),
}
DEGREES = ("tensor", "context", "pipeline", "data")
# What has no effect while another axis is off.
NEEDS = {"context_method": "context", "pipeline_schedule": "pipeline"}
MOST_RANKS = 8
# What a field meets, named after what an axis does and not after its degree.
FEATURES: dict[str, Callable[[Layout], bool]] = {
    "tensor": lambda layout: layout["tensor"] > 1,
    "sequence": lambda layout: bool(layout["sequence"]),
    "ulysses": lambda layout: layout.cuts_context == "ulysses",
    "ring": lambda layout: layout.cuts_context == "ring",
    "1f1b": lambda layout: layout.schedule == "1f1b",
    "dualpipev": lambda layout: layout.schedule == "dualpipev",
    "data": lambda layout: layout["data"] > 1,
    "expert spread": lambda layout: layout["expert"] == layout.replicas > 1,
    "expert replicated": lambda layout: 1 < layout["expert"] < layout.replicas,
    "zero 0": lambda layout: layout["zero_stage"] == 0 and layout.replicas > 1,
    "zero 1": lambda layout: layout["zero_stage"] == 1 and layout.replicas > 1,
    "zero 2": lambda layout: layout["zero_stage"] == 2 and layout.replicas > 1,
    "zero 3": lambda layout: layout["zero_stage"] == 3 and layout.replicas > 1,
    "recompute selective": lambda layout: layout["recompute"] == "selective",
    "recompute full": lambda layout: layout["recompute"] == "full",
    "split": lambda layout: bool(layout["split"]),
}


@dataclass(frozen=True)
class Layout:
    """A value of every axis."""

    values: tuple[Any, ...]

    def __getitem__(self, axis: str) -> Any:
        return self.values[_PLACES[axis]]

    @property
    def ranks(self) -> int:
        """Processes."""
        return prod(self[name] for name in DEGREES)

    @property
    def replicas(self) -> int:
        """Ranks that hold the same dense parameters, over which ZeRO and experts are spread."""
        return int(self["data"] * self["context"])

    @property
    def cuts_context(self) -> str:
        """By which method; "" where samples stay whole."""
        return str(self["context_method"]) if self["context"] > 1 else ""

    @property
    def schedule(self) -> str:
        """Of the pipeline; "" without one."""
        return str(self["pipeline_schedule"]) if self["pipeline"] > 1 else ""

    @property
    def micro_batches(self) -> int:
        """Of a rank in a step; dualpipev fills both directions of the V."""
        if not self["split"]:
            return 1
        return 2 * int(self["pipeline"]) if self.schedule == "dualpipev" else 2

    @property
    def parallel(self) -> dict[str, Any]:
        """The fields of `parallel`. What a test trains is so small that ZeRO-3 would keep it."""
        named = dict(zip(AXES, self.values, strict=True))
        fields = {name: value for name, value in named.items() if name not in ("data", "split")}
        return {"zero_persistence_threshold": 0, **fields}

    @cached_property
    def features(self) -> frozenset[str]:
        """Those of FEATURES that it has."""
        return frozenset(name for name, has in FEATURES.items() if has(self))

    @property
    def idle(self) -> bool:
        """Whether a value has no effect, so that the layout is a twin of the one with it off."""
        return any(
            self[name] != AXES[name][0] and self[needed] == AXES[needed][0]
            for name, needed in NEEDS.items()
        )

    @property
    def name(self) -> str:
        """What differs from off: 4 ranks,tensor=2,data=2,zero_stage=1."""
        parts = [
            f"{name}={self[name]}".replace("=True", "")
            for name, values in AXES.items()
            if self[name] != values[0]
        ]
        return ",".join([f"{self.ranks} ranks", *parts])

    def choices(self, strength: int) -> set[tuple[Any, ...]]:
        """Every `strength` of its features and of its values on the axes, together.

        Any number of ranks over which samples are spread counts as two.
        """
        values = dict(zip(AXES, self.values, strict=True))
        values["data"] = min(2, values["data"])
        return set(combinations([*values.items(), *sorted(self.features)], strength))


_PLACES = {name: place for place, name in enumerate(AXES)}


def layout_of(**values: Any) -> Layout:
    """The layout with these axes; the others are off."""
    return Layout(tuple(values.get(name, off[0]) for name, off in AXES.items()))


def layouts() -> Iterator[Layout]:
    """Every combination of at most MOST_RANKS ranks whose values all have an effect."""
    for values in product(*AXES.values()):
        layout = Layout(values)
        if layout.ranks <= MOST_RANKS and not layout.idle:
            yield layout


class HasChoices(Protocol):
    """What `covering` chooses from."""

    @property
    def ranks(self) -> int: ...

    def choices(self, strength: int) -> set[tuple[Any, ...]]: ...


Chosen = TypeVar("Chosen", bound=HasChoices)


def covering(rows: Sequence[Chosen], strength: int = 2) -> list[Chosen]:
    """Few of `rows` that together have every pair (triple, ...) of choices that any of them has.

    Greedy: ever the row with the most new ones for the processes it takes.
    """
    missing = {place: row.choices(strength) for place, row in enumerate(rows)}
    wanted = set().union(*missing.values())
    chosen = []
    while wanted:
        best = max(missing, key=lambda place: len(missing[place]) / (2 + rows[place].ranks))
        chosen.append(rows[best])
        covered = missing[best]
        wanted -= covered
        missing = {place: rest - covered for place, rest in missing.items() if rest - covered}
    return chosen
