"""What the ledger keeps of a loop whose parts take the time that a test gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from roots.data.batch import Batch
from roots.data.loader import StepReader, TrainSource
from roots.errors import ExitCode, RootsError
from roots.training.callbacks.ledger import LEDGER_FILE, Ledger
from roots.training.engine.step import StepResult
from roots.training.loop import train_loop
from roots.training.report.account import ALL_CATEGORIES, read_account
from roots.training.resume_point import ResumePoint
from tests.helpers.ledgers import Clock
from tests.helpers.runs import small_config
from tests.training.test_loop import STEPS, Answers, FullDisk, NoCheckpoints, Steps, parts


class SlowAnswers(Answers):
    """Takes 3 s for a step and 2 s for a batch of held-out text."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def train_step(self, micro_batches: Sequence[Batch], rate: float) -> StepResult:
        self.clock.pass_(3)
        return super().train_step(micro_batches, rate)

    def evaluate(self, micro_batches: Sequence[Batch]) -> float:
        self.clock.pass_(2)
        return super().evaluate(micro_batches)


class SlowCheckpoints(NoCheckpoints):
    """Takes 7 s for a save."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def save(self, point: ResumePoint) -> None:
        self.clock.pass_(7)
        super().save(point)


class SlowSteps(Steps):
    """Takes 1 s for each of the two micro-batches of a step."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def make(self, step: int, places: tuple[int, ...]) -> Batch:
        self.clock.pass_(1)
        return super().make(step, places)


def test_ledger_counts_what_the_loop_does(tmp_path: Path) -> None:
    """Six steps, evaluations of three batches at 0, 4 and 6, saves at 4 and 6."""
    every = {"every_steps": 4}
    config = small_config(
        tmp_path / "data",
        tmp_path,
        training={"steps": STEPS},
        evaluation={**every, "steps": 3},
        checkpoint=every,
    )
    clock = Clock()
    ledger = Ledger(tmp_path / LEDGER_FILE, clock=clock, wall=clock)
    slow: dict[str, Any] = {"engine": SlowAnswers(clock), "checkpointer": SlowCheckpoints(clock)}
    run = parts(config, ledger=ledger, **slow)
    reader = StepReader(SlowSteps(clock), run.plan, 0, num_steps=STEPS)
    run = replace(run, data=replace(run.data, train=TrainSource(reader)))
    assert ledger.end(train_loop(run)) is ExitCode.DONE
    account = read_account(tmp_path / LEDGER_FILE)
    assert account.seconds == {
        **dict.fromkeys(ALL_CATEGORIES, 0.0),
        "data": 6 * 2.0,
        "compute": 6 * 3.0,
        "evaluation": 3 * 3 * 2.0,
        "checkpoint": 2 * 7.0,
    }
    assert (account.steps, account.num_saves, account.wall) == (6, 2, 62.0)


def test_ledger_tells_saves_that_failed(tmp_path: Path) -> None:
    """The first of three saves finds no room when it begins, and the last one."""
    config = small_config(
        tmp_path / "data", tmp_path, training={"steps": STEPS}, checkpoint={"every_steps": 2}
    )
    ledger = Ledger(tmp_path / LEDGER_FILE)
    run = parts(config, ledger=ledger, checkpointer=FullDisk([2, STEPS]))
    with pytest.raises(RootsError), ledger:
        train_loop(run)
    account = read_account(tmp_path / LEDGER_FILE)
    assert (account.num_saves, account.num_failed_saves, account.num_local_copies) == (1, 2, 0)
    assert account.starts[0].code == ExitCode.NOT_SAVED
