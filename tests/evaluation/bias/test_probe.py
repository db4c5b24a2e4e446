"""Statistics of probes: by group, over units, and two models on the same draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from roots.evaluation.bias.probe import (
    Findings,
    Statistic,
    Text,
    differences,
    estimates,
    percent,
)
from roots.generation.scoring import Score


@dataclass(frozen=True)
class Named:
    """A probe of which only the statistics are asked."""

    name: str = "named"
    statistics: Sequence[Statistic] = (
        Statistic("share", percent("yes"), 50.0),
        Statistic("gap", lambda means: means["yes"] - means["also"], 0.0),
    )
    texts: Sequence[Text] = ()

    def findings(self, scores: Sequence[Score]) -> Findings:
        raise AssertionError(scores)


def findings(yes: Sequence[int], units: Sequence[str] | None = None) -> Findings:
    count = len(yes)
    return Findings(
        columns={"yes": np.array(yes, float), "also": np.zeros(count)},
        units=units or [str(number) for number in range(count)],
        groups=[("odd" if number % 2 else "even", "of all") for number in range(count)],
    )


def test_every_group_has_its_statistics() -> None:
    found = estimates(Named(), findings([1, 0] * 100), seed=1)
    by_name = {(each.group, each.statistic): each for each in found}
    assert list(dict.fromkeys(each.group for each in found)) == ["all", "even", "odd", "of all"]
    whole, even = by_name["all", "share"], by_name["even", "share"]
    assert (whole.value, whole.neutral, whole.examples, whole.units) == (50.0, 50.0, 200, 200)
    # Of 200 throws of a coin: 50 +- 1.96 * 3.5 percent.
    assert whole.interval == pytest.approx((43.1, 56.9), abs=1.0)
    assert (even.value, even.interval, even.examples) == (100.0, (100.0, 100.0), 100)
    assert by_name["odd", "gap"].value == 0.0


def test_examples_of_one_unit_count_as_one() -> None:
    yes = [1] * 90 + [0] * 10
    units = ["often"] * 90 + [f"once {number}" for number in range(10)]
    (whole,) = [each for each in estimates(Named(), findings(yes, units), 1) if _is_share(each)][:1]
    assert (whole.examples, whole.units) == (100, 11)
    assert whole.value == pytest.approx(100 / 11)


def test_two_models_are_compared_on_the_same_draws() -> None:
    old = np.random.default_rng(1).integers(0, 2, size=200)
    new = old.copy()
    # Ten answers have changed, all in one direction.
    new[np.flatnonzero(old == 0)[:10]] = 1
    share = next(
        each
        for each in differences(Named(), findings(new.tolist()), findings(old.tolist()), seed=1)
        if _is_share(each)
    )
    assert share.value == pytest.approx(5.0)
    assert share.neutral == 0.0
    # That of ten among 200: 5 +- 1.96 * 1.54; two draws apart would give +- 9.8.
    assert share.interval == pytest.approx((2.0, 8.0), abs=0.6)


def _is_share(each: object) -> bool:
    return getattr(each, "statistic", "") == "share"
