"""How exposed a secret is: its exposure, after Carlini et al., "The Secret Sharer" (1802.08232).

A secret r of a space R of equally likely ones has a rank among all of them by log-perplexity, 1 for
the one that the model finds likeliest. Its exposure is (definition 3 of the paper)

    exposure = log2 |R| - log2 rank

bits: what the model saves somebody who guesses. A secret that the model never saw has any rank, and
then the mean exposure is 1 / ln 2 = 1.44; the most is log2 |R|, that of a secret which is found
first. Where R is too large to be gone through, the rank is estimated from a sample of it:

- by the share of the sample that is likelier (section 4.3.1), where that is some of it;
- else by the tail of a skew normal distribution that is fitted to the sample (section 4.3.2), whose
  largest distance from the sample's own distribution is told with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from roots.evaluation.intervals import Floats

# Mean of -log2 of a number that is drawn evenly from (0, 1).
CHANCE = 1 / math.log(2)
# A share of fewer of the sample is known too roughly: to a third at eight.
_ENOUGH_LIKELIER = 8
# No skew normal distribution is more skewed.
_MOST_SKEWED = 0.995
_GRID = 4001
_REACH = 40.0

Method = Literal["exact", "sampled", "fitted"]


@dataclass(frozen=True)
class Exposure:
    """Exposure in bits, how the rank was found, and the distance (0 to 1) of a fit."""

    bits: float
    method: Method
    fit_distance: float | None = None


def _likelier(own: float, others: Floats) -> float:
    """How many others are likelier; one that is just as likely is half of one."""
    return float(np.sum(others < own) + 0.5 * np.sum(others == own))


def exact_exposure(own: float, others: Floats) -> Exposure:
    """Exposure of a secret of log-perplexity `own` among all other secrets there are."""
    rank = 1 + _likelier(own, others)
    return Exposure(math.log2(len(others) + 1) - math.log2(rank), "exact")


def estimated_exposure(own: float, sample: Floats, space: int) -> Exposure:
    """Exposure of a secret among `space`, of which `sample` holds the log-perplexities of some."""
    most = math.log2(space)
    likelier = _likelier(own, sample)
    if likelier >= _ENOUGH_LIKELIER or float(sample.std()) == 0.0:
        bits = -math.log2((likelier + 1) / (len(sample) + 1))
        return Exposure(min(most, bits), "sampled")
    fit = SkewNormal.fitted(sample)
    bits = -fit.log_below(own) / math.log(2)
    return Exposure(min(most, max(0.0, bits)), "fitted", fit.distance(sample))


@dataclass(frozen=True)
class SkewNormal:
    """Azzalini's skew normal distribution (1985): 2/scale phi(z) Phi(shape z), z standardised."""

    location: float
    scale: float
    shape: float

    @classmethod
    def fitted(cls, sample: Floats) -> SkewNormal:
        """The one with the mean, variance and skewness of the sample."""
        mean, deviation = float(sample.mean()), float(sample.std())
        skewness = float((((sample - mean) / deviation) ** 3).mean())
        skewness = math.copysign(min(abs(skewness), _MOST_SKEWED), skewness)
        part = abs(skewness) ** (2 / 3)
        delta = math.sqrt(math.pi / 2 * part / (part + ((4 - math.pi) / 2) ** (2 / 3)))
        delta = math.copysign(min(delta, 0.9999), skewness)
        scale = deviation / math.sqrt(1 - 2 * delta**2 / math.pi)
        location = mean - scale * delta * math.sqrt(2 / math.pi)
        return cls(location, scale, delta / math.sqrt(1 - delta**2))

    def log_density(self, x: torch.Tensor) -> torch.Tensor:
        """The logarithm of the density at every x, far in the tails too."""
        z = (x - self.location) / self.scale
        normal = -0.5 * z**2 - 0.5 * math.log(2 * math.pi)
        return math.log(2 / self.scale) + normal + torch.special.log_ndtr(self.shape * z)

    def log_below(self, x: float) -> float:
        """The logarithm of the probability of less than x, by trapezoids."""
        # Nothing beyond 40 deviations counts, nor beyond 40 of what is left at x.
        left = min(x, self.location) - _REACH * self.scale
        grid = torch.linspace(left, x, _GRID, dtype=torch.float64)
        logs = self.log_density(grid)
        logs[0] -= math.log(2)
        logs[-1] -= math.log(2)
        return min(0.0, float(logs.logsumexp(0)) + math.log((x - left) / (_GRID - 1)))

    def distance(self, sample: Floats) -> float:
        """The largest distance between the distributions of the fit and the sample (Kolmogorov)."""
        ordered = np.sort(sample)
        reach = _REACH / 4 * self.scale
        grid = torch.linspace(
            self.location - reach, self.location + reach, _GRID, dtype=torch.float64
        )
        below = self.log_density(grid).exp().cumsum(0) * float(grid[1] - grid[0])
        fitted = np.interp(ordered, grid.numpy(), below.numpy())
        steps = np.arange(len(ordered) + 1) / len(ordered)
        return float(max(np.max(steps[1:] - fitted), np.max(fitted - steps[:-1])))
