"""Young and Daly: values by hand, the true optimum, and runs that fail at random."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest

from roots.errors import ExitCode
from roots.training.report.account import read_account
from roots.training.report.forecast import (
    Costs,
    daly_interval,
    efficiency,
    forecast,
    young_interval,
)
from tests.helpers.ledgers import FakeRun, killed_and_resumed


def test_young_by_hand() -> None:
    """A save of 50 s and a failure a day: sqrt(2 * 50 * 86,400) = 2,939.4 s."""
    assert young_interval(Costs(save=50, failure=86_400)) == pytest.approx(2939.388)


def test_daly_by_hand() -> None:
    """The same: 2939.388 (1 + sqrt(50 / 172,800) / 3 + 50 / 172,800 / 9) - 50 = 2,906.15 s.

    sqrt(50 / 172,800) = 0.0170103, a third 0.0056701; 50 / 1,555,200 = 0.0000322.
    """
    assert daly_interval(Costs(save=50, failure=86_400)) == pytest.approx(2906.149, abs=1e-2)
    # Where a save takes longer than two failures are apart, the interval is that time itself.
    assert daly_interval(Costs(save=10, failure=5)) == 5
    assert daly_interval(Costs(save=10, failure=4)) == 4


def test_efficiency_by_hand() -> None:
    """10 / (e^(2/100) (100 + 5) (e^(11/100) - 1)) = 10 / (1.0202013 * 105 * 0.1162781)."""
    costs = Costs(save=1, failure=100, restart=2, idle=5)
    assert efficiency(10, costs) == pytest.approx(10 / (1.0202013 * 105 * 0.1162781), rel=1e-6)
    # A checkpoint that is whole later costs as a longer restart does.
    assert efficiency(10, replace(costs, delay=3)) == efficiency(10, replace(costs, restart=5))


def test_without_failures_only_saves_cost() -> None:
    assert efficiency(90, Costs(save=10, failure=1e12)) == pytest.approx(0.9)
    assert efficiency(1e9, Costs(save=10, failure=1.0)) == 0.0


@pytest.mark.parametrize("save, failure", [(1, 3600), (60, 3600), (300, 10_800), (600, 3600)])
def test_daly_is_near_the_true_optimum(save: float, failure: float) -> None:
    """The optimum solves e^((t + C) / M) (1 - t / M) = 1; found by bisection."""
    low, high = 0.0, failure
    for _ in range(100):
        middle = (low + high) / 2
        value = math.exp((middle + save) / failure) * (1 - middle / failure)
        low, high = (middle, high) if value > 1 else (low, middle)
    costs = Costs(save, failure)
    assert daly_interval(costs) == pytest.approx(low, rel=2e-3)
    best = efficiency(low, costs)
    assert (
        best >= efficiency(daly_interval(costs), costs) >= efficiency(young_interval(costs), costs)
    )


def simulated(interval: float, costs: Costs, intervals: int, seed: int) -> float:
    """Share of work in a run of as many saves, its failures drawn one after another."""
    draw = random.Random(seed)
    now = 0.0
    fails = draw.expovariate(1 / costs.failure)
    whole = pending = at = 0.0  # work in whole checkpoints, in the newest save, in this process
    done_at = math.inf  # when the newest save becomes whole
    target = intervals * interval
    while whole < target:
        # The next save ends, or a failure comes first.
        saved = now + interval + costs.save
        if done_at <= min(fails, saved):
            whole, done_at = pending, math.inf
            continue
        if fails < saved:
            now = fails + costs.idle
            fails = now + draw.expovariate(1 / costs.failure)
            while fails < now + costs.restart:
                now = fails + costs.idle
                fails = now + draw.expovariate(1 / costs.failure)
            now += costs.restart
            at, done_at = whole, math.inf
            continue
        now, at = saved, at + interval
        pending, done_at = at, saved + costs.delay
    return whole / now


@pytest.mark.parametrize(
    "interval, costs",
    [
        (20, Costs(save=2, failure=100, restart=5)),
        (20, Costs(save=2, failure=100, restart=5, idle=30)),
        (60, Costs(save=2, failure=40, restart=10, idle=5)),
        (20, Costs(save=0.2, failure=100, restart=5, delay=15)),
    ],
    ids=["restarts", "idle", "failures within restarts", "asynchronous"],
)
def test_efficiency_is_that_of_runs_that_fail_at_random(interval: float, costs: Costs) -> None:
    """Over 20,000 saves, whose times vary by no more than their mean: two standard errors, 1.5%."""
    share = simulated(interval, costs, 20_000, seed=5)
    assert share == pytest.approx(efficiency(interval, costs), rel=0.015)


def test_forecast_takes_what_was_measured(tmp_path: Path) -> None:
    """Saves of 2 s, steps of 2 s of which 1.25 s are useful, and the first start is killed."""
    account = read_account(killed_and_resumed(tmp_path).path)
    found = forecast(account)
    assert found is not None
    uptime = 5 + 20 + 2 + 8 + 5 + 20 + 2
    assert found.costs == Costs(save=2.0, failure=uptime, restart=5.0, idle=41.5, delay=0.0)
    used, daly, young = found.plans
    assert (used.name, used.steps, used.seconds) == ("in use", 10, 20.0)
    assert used.goodput == pytest.approx(0.625 * efficiency(20.0, found.costs))
    assert (young.steps, young.seconds) == (8, 16.0)  # sqrt(2 * 2 * 62) = 15.7 s
    assert (daly.steps, daly.seconds) == (7, 14.0)  # 15.7 (1 + 0.0423 + 0.0018) - 2 = 14.4 s


@pytest.mark.parametrize("what", ["no failure", "no save", "no step"])
def test_there_is_no_forecast_without_a_rate(tmp_path: Path, what: str) -> None:
    run = FakeRun(tmp_path)
    ledger = run.start(0)
    if what != "no step":
        run.steps(ledger, 1, 2)
    if what != "no save":
        run.save(ledger)
    ledger.end(ExitCode.DONE if what == "no failure" else ExitCode.BUG)
    assert forecast(read_account(run.path)) is None


def test_saves_only_at_the_end_have_no_interval(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    ledger = run.start(0, save_every_steps=0)
    run.steps(ledger, 1, 5)
    run.save(ledger)
    ledger.end(ExitCode.BUG)
    found = forecast(read_account(run.path))
    assert found is not None
    assert [plan.name for plan in found.plans] == ["Daly", "Young"]
