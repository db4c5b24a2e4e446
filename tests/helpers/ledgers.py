"""Runs that only keep a ledger: time passes when a test says so."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roots.data.record import DataRecord
from roots.errors import ExitCode
from roots.training.anomalies.event_log import RANK_TIMES_FILE
from roots.training.callbacks.ledger import LEDGER_FILE, Ledger
from roots.training.callbacks.metrics import (
    EVALUATIONS_FILE,
    METRICS_FILE,
    EvaluationRecord,
    EvaluationWriter,
    MetricsWriter,
)
from tests.helpers.records import step_record

FACTS: dict[str, Any] = {
    "ranks": 2,
    "layout": "2 ranks = data 2, ZeRO 1",
    "save_every_steps": 10,
}


@dataclass
class Clock:
    """Seconds since the epoch, all of them passed by hand."""

    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class FakeRun:
    """A run in `folder`: a step waits 0.5 s for data and 0.25 s in collectives, computes 1 s, and
    0.25 s pass before the next; a save takes 2 s, a start 4 s and 1 s more to load.
    """

    folder: Path
    clock: Clock = field(default_factory=Clock)

    @property
    def path(self) -> Path:
        return self.folder / LEDGER_FILE

    def start(
        self,
        step: int,
        data: DataRecord | None = None,
        *,
        found: float | None = None,
        communication: bool = True,
        **facts: Any,
    ) -> Ledger:
        """A process starts, and trains from `step`; `data`: what it says that it reads.

        found: the last sign of the one before; communication: whether it is measured.
        """
        started = self.clock.now
        self.clock.pass_(4)
        ledger = Ledger(self.path, started=started, clock=self.clock, wall=self.clock)
        ledger.start(found)
        ledger.met((lambda: 0.0) if communication else None, **{**FACTS, **facts})
        if data is not None:
            ledger.reads(data)
        self.clock.pass_(1)
        ledger.begin(step)
        return ledger

    def steps(self, ledger: Ledger, first: int, last: int) -> None:
        """Train the steps `first` to `last`."""
        for step in range(first, last + 1):
            with ledger.span("data"):
                self.clock.pass_(0.5)
            with ledger.span("compute"):
                self.clock.pass_(0.75)
                with ledger.span("communication"):
                    self.clock.pass_(0.25)
                self.clock.pass_(0.25)
            self.clock.pass_(0.25)
            ledger.step_done(step)

    def save(self, ledger: Ledger, *, whole: bool = True) -> None:
        """Save where training is; `whole`: at once."""
        with ledger.span("checkpoint"):
            self.clock.pass_(2)
        ledger.saved()
        if whole:
            ledger.written(ledger._step, 2.0)

    def lines(self) -> list[dict[str, Any]]:
        """What is written."""
        return [json.loads(line) for line in self.path.read_text().splitlines()]


def killed_and_resumed(folder: Path, data: DataRecord | None = None) -> FakeRun:
    """A run of 20 steps that is killed after step 14, and goes on from its save at 10, with `data`.

    Steps 11 to 14, 8 s, are lost; nothing runs for 41.5 s.
    """
    run = FakeRun(folder)
    ledger = run.start(0)
    run.steps(ledger, 1, 10)
    run.save(ledger)
    run.steps(ledger, 11, 14)
    run.clock.pass_(41.5)
    ledger = run.start(10, data, layout="4 ranks = tensor 4, ZeRO 0", ranks=4)
    run.steps(ledger, 11, 20)
    run.save(ledger)
    ledger.end(ExitCode.DONE)
    return run


def with_records(run: FakeRun, steps: int = 20) -> FakeRun:
    """`run` with metrics.jsonl, evaluations.jsonl and rank_times.jsonl; step 3 overflowed."""
    metrics = MetricsWriter(run.folder / METRICS_FILE)
    for step in range(1, steps + 1):
        bad = {"loss": math.nan, "grad_norm": math.nan, "skipped": True} if step == 3 else {}
        metrics.write(step_record(step, **bad))
    metrics.close()
    evaluations = EvaluationWriter(run.folder / EVALUATIONS_FILE)
    for step, loss in ((10, 2.25), (steps, 2.5)):
        evaluations.write(EvaluationRecord.of(step, loss))
    evaluations.close()
    with (run.folder / RANK_TIMES_FILE).open("w") as file:
        for step in range(5, steps + 1, 5):
            file.write(json.dumps({"step": step, "seconds": [1.0, 1.5]}) + "\n")
    return run
