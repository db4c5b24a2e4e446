"""What is too far below the median is named; what only varies is not."""

from __future__ import annotations

import pytest

from roots.doctor.outliers import slow_ones


@pytest.mark.parametrize(
    "rates, named",
    [
        ([100, 100, 100], []),
        ([100, 100, 49], [2]),
        ([100, 51, 100, 100], []),
        # A fast one is no reason to name the others; a fast half is.
        ([100, 100, 1000], []),
        ([100, 100, 1000, 1000, 1000], [0, 1]),
        # Where they vary by themselves, one that is farther off than chance takes it.
        ([100, 80, 120, 60, 140, 49], []),
        ([100, 80, 120, 60, 140, 20], [5]),
        ([100, 100, 0], [2]),
        ([0, 0, 0], []),
        # Of two nobody knows which is right.
        ([100, 1], []),
        ([], []),
    ],
)
def test_rates_too_far_below_the_median(rates: list[float], named: list[int]) -> None:
    assert list(slow_ones(dict(enumerate(rates)), 0.5)) == named


def test_share_is_of_the_median() -> None:
    assert slow_ones({"a": 10.0, "b": 10.1, "c": 3.0}, 0.5) == {"c": 0.3}
