"""Callbacks: order, state, closing, and what the recording ones leave behind."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.console import Console

from roots.training.callbacks.callback import (
    Callback,
    CallbackList,
    MetricsCallback,
    ProgressCallback,
    TrackerCallback,
    replay,
)
from roots.training.callbacks.metrics import (
    EvaluationWriter,
    MetricsWriter,
    SaveRecord,
    SaveWriter,
    StepRecord,
    read_evaluations,
    read_metrics,
    read_saves,
)
from roots.training.callbacks.progress import Progress
from tests.helpers.records import step_record

HOOKS = (
    "on_train_start",
    "on_step_start",
    "on_step_end",
    "on_tasks_end",
    "on_evaluate_end",
    "on_checkpoint_end",
    "on_rewind",
    "on_train_end",
)

SAVED = SaveRecord(step=1, bytes=3_000_000_000, stall_seconds=0.25, write_seconds=2.0)


class Noting(Callback):
    """Notes every call in a shared list; `broken` makes the end raise."""

    def __init__(
        self, name: str, calls: list[str], priority: int = 0, broken: bool = False
    ) -> None:
        self._name = name
        self._calls = calls
        self._broken = broken
        self.priority = priority

    def on_train_start(self, step: int) -> None:
        self._calls.append(f"{self._name} start {step}")

    def on_step_start(self, step: int) -> None:
        self._calls.append(f"{self._name} step {step}")

    def on_step_end(self, record: object) -> None:
        self._calls.append(f"{self._name} record")

    def on_tasks_end(self, step: int, scores: Mapping[str, float]) -> None:
        self._calls.append(f"{self._name} scores {scores}")

    def on_evaluate_end(self, step: int, loss: float) -> None:
        self._calls.append(f"{self._name} loss {loss}")

    def on_checkpoint_end(self, path: Path, saved: SaveRecord) -> None:
        self._calls.append(f"{self._name} saved {path}")

    def on_train_end(self) -> None:
        self._calls.append(f"{self._name} end")
        if self._broken:
            raise OSError("disk full")


def test_there_are_at_most_ten_hooks_and_each_is_passed_on() -> None:
    hooks = [name for name in vars(Callback) if name.startswith("on_")]
    assert sorted(hooks) == sorted(HOOKS)
    assert all(name in vars(CallbackList) for name in hooks)


def test_higher_priority_is_called_first_and_ties_keep_their_order() -> None:
    calls: list[str] = []
    callbacks = CallbackList(
        [Noting("low", calls, -1), Noting("a", calls), Noting("high", calls, 9), Noting("b", calls)]
    )
    order = ["high", "a", "b", "low"]
    for call, expected in [
        (lambda: callbacks.on_train_start(3), "start 3"),
        (lambda: callbacks.on_step_start(4), "step 4"),
        (lambda: callbacks.on_step_end(step_record(4)), "record"),
        (lambda: callbacks.on_tasks_end(4, {"a/b": 1.0}), "scores {'a/b': 1.0}"),
        (lambda: callbacks.on_evaluate_end(4, 1.5), "loss 1.5"),
        (lambda: callbacks.on_checkpoint_end(Path("c"), SAVED), "saved c"),
        (lambda: callbacks.on_train_end(), "end"),
    ]:
        calls.clear()
        call()
        assert calls == [f"{name} {expected}" for name in order]


def test_every_callback_is_closed_even_if_one_fails() -> None:
    calls: list[str] = []
    callbacks = CallbackList([Noting("a", calls, broken=True), Noting("b", calls)])
    with pytest.raises(OSError, match="disk full"):
        callbacks.on_train_end()
    assert calls == ["a end", "b end"]


def test_metrics_callback_writes_all_files(tmp_path: Path) -> None:
    names = ("metrics.jsonl", "evaluations.jsonl", "checkpoints.jsonl")
    metrics, evaluations, saves = (tmp_path / name for name in names)
    callback = MetricsCallback(
        MetricsWriter(metrics), EvaluationWriter(evaluations), SaveWriter(saves)
    )
    callbacks = CallbackList([callback])
    callbacks.on_evaluate_end(0, 5.0)
    callbacks.on_step_end(step_record(1))
    callbacks.on_tasks_end(1, {"cloze/acc": 0.5, "cloze/perplexity": math.inf})
    callbacks.on_evaluate_end(1, 4.0)
    callbacks.on_evaluate_end(2, 3.0)
    callbacks.on_checkpoint_end(tmp_path, SAVED)
    callbacks.on_train_end()
    assert read_metrics(metrics) == [step_record(1)]
    records = read_evaluations(evaluations)
    assert [(one.step, one.loss) for one in records] == [(0, 5.0), (1, 4.0), (2, 3.0)]
    scores = {"cloze/acc": 0.5, "cloze/perplexity": None}
    assert [one.tasks for one in records] == [None, scores, None]
    assert "Infinity" not in evaluations.read_text(encoding="utf-8")
    logged = KeepingTracker()
    replay(CallbackList([TrackerCallback([logged], 1)]), tmp_path, 2)
    assert (1, {"tasks/cloze/acc": 0.5}) in logged.rows
    assert read_saves(saves) == [SAVED]


class KeepingTracker:
    """Keeps what is logged."""

    name = "keeper"
    errors = (OSError,)

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.closed = False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.rows.append((step, dict(values)))

    def close(self) -> None:
        self.closed = True


def test_tracker_callback_logs_at_its_interval() -> None:
    trackers = [KeepingTracker(), KeepingTracker()]
    callbacks = CallbackList([TrackerCallback(trackers, every_steps=2)])
    for step in range(1, 6):
        callbacks.on_step_end(step_record(step, skipped=step == 4))
    callbacks.on_tasks_end(5, {"cloze/acc": 0.5})
    callbacks.on_evaluate_end(5, 0.0)
    callbacks.on_train_end()
    for tracker in trackers:
        assert [step for step, _ in tracker.rows] == [2, 4, 5, 5]
        assert tracker.rows[2][1] == {"tasks/cloze/acc": 0.5}
        assert tracker.rows[0][1]["train/loss"] == step_record(2).loss
        assert tracker.rows[1][1]["train/skipped"] == 1.0
        assert "train/step" not in tracker.rows[0][1]
        assert tracker.rows[3][1] == {"evaluation/loss": 0.0, "evaluation/perplexity": 1.0}
        assert tracker.closed


def test_trackers_get_a_save_at_a_step_that_does_not_go_back() -> None:
    """Training has gone on while it was written."""
    tracker = KeepingTracker()
    callback = TrackerCallback([tracker], every_steps=10)
    for step in (1, 2, 3):
        callback.on_step_end(step_record(step))
    callback.on_checkpoint_end(Path("c"), dataclasses.replace(SAVED, disk_share=0.9))
    values = {
        "bytes": 3e9,
        "stall_seconds": 0.25,
        "write_seconds": 2.0,
        "disk_share": 0.9,
        "gigabytes_per_second": 1.5,
    }
    assert tracker.rows == [(3, {f"checkpoint/{name}": value for name, value in values.items()})]


def test_progress_callback_drives_the_lines() -> None:
    out = io.StringIO()
    progress = Progress(2, 1, Console(file=out, soft_wrap=True, highlight=False))
    callbacks = CallbackList([ProgressCallback(progress)])
    callbacks.on_train_start(0)
    callbacks.on_step_end(step_record(1))
    callbacks.on_evaluate_end(1, 4.0)
    callbacks.on_step_end(step_record(2))
    callbacks.on_train_end()
    assert [line.split("  ")[0] for line in out.getvalue().splitlines()] == [
        "step 1/2",
        "step 1/2",
        "step 2/2",
    ]


def test_records_are_written_before_they_are_shown() -> None:
    assert MetricsCallback.priority > TrackerCallback.priority > ProgressCallback.priority


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
def test_records_that_cannot_be_written_are_a_warning_each_and_no_exception(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ("metrics.jsonl", "evaluations.jsonl", "checkpoints.jsonl")
    paths = [tmp_path / name for name in names]
    for path in paths:
        path.symlink_to("/dev/full")
    writers = MetricsWriter(paths[0]), EvaluationWriter(paths[1]), SaveWriter(paths[2])
    callbacks = CallbackList([MetricsCallback(*writers)])
    for step in (1, 2):
        callbacks.on_step_end(step_record(step))
        callbacks.on_evaluate_end(step, 4.0)
        callbacks.on_checkpoint_end(tmp_path, SAVED)
    callbacks.on_train_end()
    told = [message.partition(" (No space left on device); ")[0] for message in caplog.messages]
    assert told == [
        f"{paths[0]}: cannot be written",
        f"{paths[1]}: cannot be written",
        f"{paths[2]}: cannot be written",
        *(f"{path}: 2 records were not written" for path in paths),
    ]


@pytest.mark.parametrize(
    "error, reason",
    [
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (RuntimeError("lost its\nservice"), "lost its service"),
    ],
)
def test_tracker_that_fails_is_left_out_and_the_run_goes_on(
    error: Exception, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Full(KeepingTracker):
        name = "Curves"

        def log(self, step: int, values: Mapping[str, float]) -> None:
            raise error

    whole = KeepingTracker()
    callbacks = CallbackList([TrackerCallback([Full(), whole], every_steps=1)])
    for step in (1, 2):
        callbacks.on_step_end(step_record(step))
    callbacks.on_train_end()
    assert [step for step, _ in whole.rows] == [1, 2]
    assert caplog.messages == [
        f"Curves failed and is left out from now on ({reason}); metrics.jsonl has the same values"
    ]


def test_replay_tells_the_recorded_course_in_order(tmp_path: Path) -> None:
    heard: list[tuple[str, int]] = []

    class Ear(Callback):
        def on_step_end(self, record: StepRecord) -> None:
            heard.append(("step", record.step))

        def on_evaluate_end(self, step: int, loss: float) -> None:
            heard.append(("evaluation", step))

    number = {field.name: 1 for field in dataclasses.fields(StepRecord) if field.name != "overflow"}
    lines = [json.dumps({**number, "step": step}) for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    marks = [json.dumps({"step": step, "loss": 1.0, "perplexity": 2.7}) for step in (0, 2)]
    (tmp_path / "evaluations.jsonl").write_text("\n".join(marks) + "\n")
    replay(Ear(), tmp_path, 2)
    assert heard == [("evaluation", 0), ("step", 1), ("step", 2), ("evaluation", 2)]
