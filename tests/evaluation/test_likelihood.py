"""Perplexity of any loss, the largest and the undefined included."""

from __future__ import annotations

import math

import pytest

from roots.evaluation.likelihood import finite, perplexity_of


def test_perplexity_is_the_exponential() -> None:
    assert perplexity_of(0.0) == 1.0
    assert perplexity_of(math.log(50.0)) == pytest.approx(50.0)
    # Just below the largest float, e to the 709.78.
    assert perplexity_of(709.0) == pytest.approx(8.218407461554972e307)


@pytest.mark.parametrize("loss", [710.0, 1e6, math.inf])
def test_perplexity_too_large_to_hold_is_infinite(loss: float) -> None:
    assert perplexity_of(loss) == math.inf


def test_perplexity_of_no_number_is_none() -> None:
    """A model that broke is not taken for a bad one."""
    assert math.isnan(perplexity_of(math.nan))


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, None])
def test_what_json_cannot_hold_is_none(value: float | None) -> None:
    assert finite(value) is None


@pytest.mark.parametrize("value", [0, 1.5, -3, True])
def test_what_json_can_hold_stays(value: float) -> None:
    assert finite(value) is value
