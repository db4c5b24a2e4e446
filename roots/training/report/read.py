"""What the folder of a run holds for a report: its ledger, its records, the step times of ranks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from roots.errors import RootsError, problem
from roots.lock import RUN_LOCK_NAME, is_owned
from roots.training.anomalies.event_log import RANK_TIMES_FILE
from roots.training.callbacks.ledger import LEDGER_FILE
from roots.training.callbacks.metrics import (
    EVALUATIONS_FILE,
    METRICS_FILE,
    EvaluationRecord,
    StepRecord,
    read_evaluations,
    read_metrics,
)
from roots.training.ownership import last_sign
from roots.training.report.account import Account, read_account
from roots.training.report.forecast import Forecast, forecast


@dataclass(frozen=True)
class RankTimes:
    """How long step `step` took on every rank, in rank order."""

    step: int
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class PhaseBegin:
    """Where a phase of the data after the first one begins: `step` is the first that reads it."""

    phase: int
    step: int
    datasets: int

    def describe(self) -> str:
        """In words."""
        sets = f"{self.datasets:,} dataset{'' if self.datasets == 1 else 's'}"
        return f"phase {self.phase} from step {self.step:,}: {sets}"


@dataclass(frozen=True)
class Report:
    """All that is known of a run; parts that its folder lacks are None or empty."""

    folder: Path
    account: Account | None
    forecast: Forecast | None
    metrics: tuple[StepRecord, ...]
    evaluations: tuple[EvaluationRecord, ...]
    rank_times: tuple[RankTimes, ...]

    @property
    def name(self) -> str:
        """That of the run's folder."""
        return self.folder.resolve().name

    @property
    def phases(self) -> tuple[PhaseBegin, ...]:
        """Where the data became others."""
        account = self.account
        if account is None:
            return ()
        found = []
        for phase in account.phases:
            later = (one.step for one in self.metrics if one.consumed_samples > phase.first_sample)
            if phase.number > 0:
                step = next(later, account.steps + 1)
                found.append(PhaseBegin(phase.number, step, phase.datasets))
        return tuple(found)


def read_report(folder: Path) -> Report:
    """Read the run in `folder`, which may be training. Raises RootsError if there is none."""
    ledger, metrics = folder / LEDGER_FILE, folder / METRICS_FILE
    if not ledger.is_file() and not metrics.is_file():
        rule = f"holds neither {LEDGER_FILE} nor {METRICS_FILE}, so no run has trained there"
        raise RootsError(problem(str(folder), None, rule, "name the folder of a run"))
    account = None
    if ledger.is_file():
        lock = folder / RUN_LOCK_NAME
        account = read_account(ledger, running=is_owned(lock), last_sign=last_sign(lock))
    evaluations = folder / EVALUATIONS_FILE
    return Report(
        folder=folder,
        account=account,
        forecast=None if account is None else forecast(account),
        metrics=tuple(read_metrics(metrics)) if metrics.is_file() else (),
        evaluations=tuple(read_evaluations(evaluations)) if evaluations.is_file() else (),
        rank_times=read_rank_times(folder / RANK_TIMES_FILE),
    )


def read_rank_times(path: Path) -> tuple[RankTimes, ...]:
    """Step times of all ranks, lines {"step": n, "seconds": [a rank each]}; none without a file.

    Of lines that go back to earlier steps the later ones count, and lines that are torn do not.
    """
    found: list[RankTimes] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            tree = json.loads(line)
            times = RankTimes(int(tree["step"]), tuple(map(float, tree["seconds"])))
        except (ValueError, TypeError, KeyError):
            continue
        while found and found[-1].step >= times.step:
            found.pop()
        found.append(times)
    return tuple(found)
