"""What follows from a mean loss, whoever measured it."""

from __future__ import annotations

import math


def perplexity_of(loss: float) -> float:
    """exp(loss) of a loss in nats a token; infinite where it is too large to hold."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def finite(value: float | None) -> float | None:
    """The value where JSON can hold it, None where it is infinite or no number."""
    return value if value is not None and math.isfinite(value) else None
