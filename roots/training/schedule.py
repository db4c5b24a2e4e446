"""The learning rate as a pure function of the step.

Steps count from 0: `learning_rate(..., step=s)` is the rate of the update that follows s finished
ones. Nothing is remembered between calls, so resuming needs no scheduler state. With w the warmup,
d the decay horizon and n the run's steps (all may be fractional when counted in tokens):

  warmup        s < w    peak * (s + 1) / w
  cosine        f = (s - w) / (d - w)      min + (peak - min) * (1 + cos(pi f)) / 2
  linear        the same f                 peak + (min - peak) * f
  constant                                 peak
  inverse_sqrt                             max(min, peak * sqrt(max(w, 1) / (s + 1)))
  wsd           f = (s - (n - d)) / d      peak + (min - peak) * f, peak before

f is clipped to [0, 1]: the minimum is reached at step d (wsd: at step n), one after the last update
of a run of that length, and kept from then on. The warmup is a ceiling for every shape.
Sources: Loshchilov, Hutter 2017 (cosine); Vaswani et al. 2017 (inverse_sqrt); Hu et al. 2024,
MiniCPM (wsd, here with the linear decay of Haegele et al. 2024).
"""

from __future__ import annotations

import math

from roots.config.training import ScheduleConfig


def learning_rate(
    config: ScheduleConfig, peak: float, step: int, total_steps: int, tokens_per_step: int
) -> float:
    """Return the learning rate of update `step` (from 0).

    `peak` is optimizer.learning_rate, `total_steps` is training.steps, `tokens_per_step` is the
    size of a global batch in tokens, by which lengths in tokens are divided.
    """
    warmup = config.warmup_in_steps(tokens_per_step)
    shape = _shape(config, peak, step, total_steps, tokens_per_step, warmup)
    if step + 1 >= warmup:
        return shape
    return min(shape, peak * (step + 1) / warmup)


def _shape(
    config: ScheduleConfig,
    peak: float,
    step: int,
    total_steps: int,
    tokens_per_step: int,
    warmup: float,
) -> float:
    """Return the rate that the chosen shape gives where the warmup does not limit it."""
    low = config.min_learning_rate
    if config.name == "constant":
        return peak
    if config.name == "inverse_sqrt":
        return max(low, min(peak, peak * math.sqrt(max(warmup, 1) / (step + 1))))
    length = config.decay_in_steps(total_steps, tokens_per_step)
    if config.name == "wsd":
        return _linear(_fraction(step, total_steps - length, total_steps), peak, low)
    fraction = _fraction(step, warmup, length)
    if config.name == "linear":
        return _linear(fraction, peak, low)
    return low + (peak - low) * (1 + math.cos(math.pi * fraction)) / 2


def _fraction(step: int, start: float, end: float) -> float:
    """How far `step` is from `start` to `end`, clipped to [0, 1]; an empty way is not begun."""
    if step >= end:
        return 1.0
    if step <= start:
        return 0.0
    return (step - start) / (end - start)


def _linear(fraction: float, peak: float, low: float) -> float:
    """Interpolate; exact at both ends."""
    return peak * (1 - fraction) + low * fraction
