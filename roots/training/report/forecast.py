"""How often to save, and what share of the time is then left for work: Young and Daly.

Failures come at random, on average once in M seconds of running. A save stops training for C
seconds, R seconds pass from the start of a process until training goes on, D seconds before that in
which nothing runs, and a checkpoint is whole L seconds after training went on (0 where training
waits for it). With t seconds of work between saves, those t take on average

    exp((R + L) / M) (M + D) (exp((t + C) / M) - 1)

seconds. For D = L = 0 that is the complete model of J. T. Daly, "A higher order estimate of the
optimum checkpoint interval for restart dumps", Future Generation Computer Systems 22 (2006).
Nothing fails during D. A failure while a checkpoint is not yet whole falls back to the one before,
which costs what restarts longer by L cost, as long as L < t + C.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from roots.training.report.account import Account


@dataclass(frozen=True)
class Costs:
    """Seconds: `save` is C above, `failure` M, `restart` R, `idle` D, `delay` L."""

    save: float
    failure: float
    restart: float = 0.0
    idle: float = 0.0
    delay: float = 0.0


@dataclass(frozen=True)
class Plan:
    """Saving every `steps` steps = `seconds` of work, and the goodput to expect."""

    name: str
    steps: int
    seconds: float
    goodput: float


@dataclass(frozen=True)
class Forecast:
    """What the measured costs mean: for the interval in use (if saves have one), and the best."""

    costs: Costs
    plans: tuple[Plan, ...]


def young_interval(costs: Costs) -> float:
    """The best work between saves, to first order: sqrt(2 C M). J. W. Young, CACM 17 (1974)."""
    return math.sqrt(2 * costs.save * costs.failure)


def daly_interval(costs: Costs) -> float:
    """The best work between saves, to higher order: equation 37 of Daly (2006)."""
    if costs.save >= 2 * costs.failure:
        return costs.failure
    ratio = costs.save / (2 * costs.failure)
    return young_interval(costs) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - costs.save


def efficiency(interval: float, costs: Costs) -> float:
    """Share of the time that is work with saves after every `interval` seconds of it."""
    mean = costs.failure
    try:
        late = math.exp((costs.restart + costs.delay) / mean)
        spent = late * (mean + costs.idle) * math.expm1((interval + costs.save) / mean)
    except OverflowError:
        return 0.0
    return interval / spent if spent > 0 else 0.0


def forecast(account: Account) -> Forecast | None:
    """The forecast for the measured run; None without a failure, a save or a step that counts.

    The goodput is the efficiency, times the share of work that is useful (Account.useful_share).
    """
    save, failure, step = account.save_seconds, account.failure_seconds, account.step_seconds
    if save is None or failure is None or step is None or failure <= 0 or step <= 0:
        return None
    costs = Costs(
        save, failure, account.restart_seconds, account.idle_seconds, account.delay_seconds
    )
    every = account.starts[-1].save_every_steps
    wishes = [("in use", every)] if every > 0 else []
    for name, seconds in (("Daly", daly_interval(costs)), ("Young", young_interval(costs))):
        wishes.append((name, max(1, round(seconds / step))))
    plans = [
        Plan(name, steps, steps * step, account.useful_share * efficiency(steps * step, costs))
        for name, steps in wishes
    ]
    return Forecast(costs, tuple(plans))
