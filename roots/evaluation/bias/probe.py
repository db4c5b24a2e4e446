"""What all probes have in common: texts to score, columns of findings, statistics with intervals.

A probe turns its file into texts, each the continuation of a context. Of the scores it makes one
row of findings an example; statistics are functions of the means of these columns. Examples are not
independent where they have something in common, a term or a template: the units that are drawn
again for the intervals are what is.

Legend: R resamples, U units, C columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from roots.evaluation.intervals import Floats, Interval, middle_of, resampled_means
from roots.generation.scoring import Score

# The group of all examples.
ALL = "all"

Means = Mapping[str, Floats]


@dataclass(frozen=True)
class Text:
    """A text that is scored behind its context, which may be empty; both are joined as they are."""

    context: str
    continuation: str


@dataclass(frozen=True)
class Statistic:
    """A figure that is a function of means; `neutral` is that of a model without a preference."""

    name: str
    of: Callable[[Means], Floats]
    neutral: float | None = None


@dataclass(frozen=True)
class Findings:
    """One row an example: its findings, the unit it belongs to, and the groups it is counted in."""

    columns: Mapping[str, Floats]
    units: Sequence[str]
    groups: Sequence[Sequence[str]]
    left_out: Mapping[str, int] = field(default_factory=dict)


class Probe(Protocol):
    """A file of examples, ready to be scored."""

    @property
    def name(self) -> str:
        """What the format is called."""

    @property
    def statistics(self) -> Sequence[Statistic]:
        """What is made of its findings."""

    @property
    def texts(self) -> Sequence[Text]:
        """All texts that it needs the likelihood of."""

    def findings(self, scores: Sequence[Score]) -> Findings:
        """What the scores of `texts` say of each example."""


@dataclass(frozen=True)
class Estimate:
    """A statistic of one group of examples, or its difference between two models."""

    group: str
    statistic: str
    value: float
    interval: Interval
    neutral: float | None
    examples: int
    units: int


def estimates(probe: Probe, findings: Findings, seed: int) -> list[Estimate]:
    """Every statistic of all examples and of each group."""
    return _estimates(probe, [findings], seed, lambda values: values[0])


def differences(probe: Probe, new: Findings, old: Findings, seed: int) -> list[Estimate]:
    """How far every statistic of `new` lies above that of `old`, both measured on equal draws."""
    return _estimates(probe, [new, old], seed, lambda values: values[0] - values[1])


def _estimates(
    probe: Probe,
    several: Sequence[Findings],
    seed: int,
    join: Callable[[Sequence[Floats]], Floats],
) -> list[Estimate]:
    found = []
    first = several[0]
    names = list(first.columns)
    groups = [ALL, *sorted({group for groups in first.groups for group in groups})]
    for group in groups:
        inside = [group in (ALL, *of) for of in first.groups]
        units = [unit for unit, is_inside in zip(first.units, inside) if is_inside]
        sides = [
            _unit_means(np.stack([each.columns[name][inside] for name in names], axis=1), units)
            for each in several
        ]
        values_UC = np.concatenate(sides, axis=1)
        means = _by_side(values_UC.mean(axis=0, keepdims=True), names, len(several))
        drawn = _by_side(resampled_means(values_UC, seed), names, len(several))
        for statistic in probe.statistics:
            value = join([statistic.of(each) for each in means])
            interval = middle_of(join([statistic.of(each) for each in drawn]))
            neutral = statistic.neutral if len(several) == 1 else 0.0
            size = (len(units), len(values_UC))
            found.append(Estimate(group, statistic.name, float(value[0]), interval, neutral, *size))
    return found


def _unit_means(values: Floats, units: Sequence[str]) -> Floats:
    """values_UC: the mean over the examples of each unit."""
    names, places = np.unique(np.array(units), return_inverse=True)
    sums = np.zeros((len(names), values.shape[1]))
    np.add.at(sums, places, values)
    return sums / np.bincount(places)[:, None]


def _by_side(means_RC: Floats, names: Sequence[str], sides: int) -> list[Means]:
    parts = np.split(means_RC, sides, axis=1)
    return [{name: part[:, number] for number, name in enumerate(names)} for part in parts]


def percent(column: str) -> Callable[[Means], Floats]:
    """The mean of a column of 0 and 1, in percent."""
    return lambda means: 100.0 * means[column]
