"""Which of several rates are out of line, by the median of them all."""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Mapping
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)

# Of two that differ nobody can say which is right.
LEAST_PEERS = 3
# Beyond so many deviations of what varies by chance; the factor makes the median absolute deviation
# one of a normal distribution.
_DEVIATIONS = 5.0
_NORMAL = 1.4826
# Less than a quarter of the median is out of line, however much the others vary.
_MOST_ALLOWED = 0.75


def slow_ones(rates: Mapping[Key, float], allowed: float) -> dict[Key, float]:
    """Those of `rates` that are too far below their median, which has LEAST_PEERS or more of them.

    Each with its share of the median. Up to the fraction `allowed` below it is always well; where
    the others vary more, so may one.
    """
    if len(rates) < LEAST_PEERS:
        return {}
    median = statistics.median(rates.values())
    if median <= 0:
        return {}
    spread = statistics.median(abs(rate - median) for rate in rates.values()) / median
    most = min(_MOST_ALLOWED, max(allowed, _DEVIATIONS * _NORMAL * spread))
    return {key: rate / median for key, rate in rates.items() if rate / median < 1.0 - most}
