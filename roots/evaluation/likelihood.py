"""What follows from a mean loss, whoever measured it."""

from __future__ import annotations

import math


def perplexity_of(loss: float) -> float:
    """exp(loss) of a loss in nats a token; infinite where it is too large to hold."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
