"""What a spike of the loss is: far above the losses before it, in their standard deviations."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable

# Of the mean: losses that are all alike are no reason to take the next digit for a spike.
_LEAST_DEVIATION = 1e-3


class LossWindow:
    """The last `size` losses of steps that were applied."""

    def __init__(self, size: int, losses: Iterable[float] = ()) -> None:
        self._size = size
        self._losses = deque(losses, maxlen=size)

    @property
    def losses(self) -> list[float]:
        """The losses, oldest first."""
        return list(self._losses)

    def add(self, loss: float) -> None:
        """Let `loss` be the newest; the oldest goes when the window is full."""
        if math.isfinite(loss):
            self._losses.append(loss)

    def zscore(self, loss: float) -> float:
        """Standard deviations of `loss` above the mean; 0 until the window is full.

        The deviation counts as a thousandth of the mean at least.
        """
        if len(self._losses) < self._size:
            return 0.0
        mean = statistics.fmean(self._losses)
        deviation = statistics.pstdev(self._losses, mean)
        least = max(_LEAST_DEVIATION * abs(mean), math.ulp(0.0))
        return (loss - mean) / max(deviation, least)
