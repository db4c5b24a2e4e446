"""How far a measured figure may be off by chance: 95% intervals of shares, means and differences.

Shares of independent trials have Wilson's interval (1927), which holds at shares of 0 and 1 too.
Everything else is resampled (Efron and Tibshirani, "An introduction to the bootstrap", 1993,
section 13.3): the units that were drawn independently, pairs of sentences or documents, are drawn
again from themselves with replacement, and the interval is the middle 95% of what is then measured.
Two models that are compared on the same units are measured on the same draws.

Legend: R resamples, U units, C columns.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
_NORMAL_QUANTILE = 1.959963984540054
# Counts of draws that are held at once.
_COUNTS_AT_A_TIME = 1 << 24

Floats = NDArray[np.floating[Any]]


class Interval(NamedTuple):
    """Where the true figure lies, with 95% confidence."""

    low: float
    high: float


def share_interval(successes: int, trials: int) -> Interval:
    """Wilson's interval of a share; of no trials it is all of [0, 1]."""
    if trials == 0:
        return Interval(0.0, 1.0)
    share, square = successes / trials, _NORMAL_QUANTILE**2
    middle = share + square / (2 * trials)
    half = math.sqrt(square * (share * (1 - share) + square / (4 * trials)) / trials)
    middle, half = middle / (1 + square / trials), half / (1 + square / trials)
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


def resampled_means(columns_UC: Floats, seed: int, resamples: int = RESAMPLES) -> Floats:
    """means_RC of all columns over units that are drawn again, the same ones for every column."""
    units = len(columns_UC)
    draws = np.random.default_rng(seed)
    at_a_time = max(1, _COUNTS_AT_A_TIME // units)
    parts = []
    for first in range(0, resamples, at_a_time):
        count = min(at_a_time, resamples - first)
        drawn_RU = draws.multinomial(units, np.full(units, 1 / units), size=count)
        parts.append(drawn_RU @ columns_UC / units)
    return np.concatenate(parts)


def middle_of(values_R: Floats) -> Interval:
    """The interval that holds the middle 95% of resampled figures."""
    low, high = np.quantile(values_R, [0.025, 0.975])
    return Interval(float(low), float(high))


def mean_interval(values_U: Floats, seed: int) -> Interval:
    """The interval of a mean over units."""
    return middle_of(resampled_means(values_U[:, None], seed)[:, 0])
