"""Hooks of the training loop, and the callbacks that show and record a run.

The loop knows steps and stop conditions; whatever watches it is a callback. Hooks run on every rank
that holds the callback and must not communicate; recording callbacks exist on global rank 0 alone.
Each is called in the order of falling `priority`, equal ones in the order they were given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from roots.log import get_logger
from roots.training.callbacks.metrics import (
    EVALUATIONS_FILE,
    METRICS_FILE,
    EvaluationRecord,
    EvaluationWriter,
    MetricsWriter,
    SaveRecord,
    SaveWriter,
    StepRecord,
    read_evaluations,
    read_metrics,
)
from roots.training.callbacks.progress import Progress
from roots.training.callbacks.trackers import Tracker

_LOGGER = get_logger("training.callbacks")


class Callback:
    """Base of callbacks: every hook does nothing. Steps count finished updates.

    `priority`: higher is called earlier. A hook that raises ends the run: what only records or
    shows it must not.
    """

    priority: int = 0

    def on_train_start(self, step: int) -> None:
        """Training begins, with `step` updates already done (0 in a new run)."""

    def on_step_start(self, step: int) -> None:
        """The update that will be number `step` begins (counted from 1)."""

    def on_step_end(self, record: StepRecord) -> None:
        """An update is finished, or was skipped for overflow."""

    def on_tasks_end(self, step: int, scores: Mapping[str, float]) -> None:
        """Scores on tasks after `step` updates, by TASK/MEASURE; the held-out loss follows."""

    def on_evaluate_end(self, step: int, loss: float) -> None:
        """The mean held-out loss in nats a token, after `step` updates."""

    def on_checkpoint_end(self, path: Path, saved: SaveRecord) -> None:
        """A checkpoint is complete in `path`, maybe of an earlier step: written beside training."""

    def on_rewind(self, step: int) -> None:
        """The run has gone back to where `step` updates were done, and makes later ones again."""

    def on_train_end(self) -> None:
        """Training is over, for whatever reason; close what is open."""


class CallbackList(Callback):
    """Passes every hook on to callbacks, in the order of their priority."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = sorted(callbacks, key=lambda callback: -callback.priority)

    def __iter__(self) -> Iterator[Callback]:
        return iter(self._callbacks)

    def on_train_start(self, step: int) -> None:
        for callback in self._callbacks:
            callback.on_train_start(step)

    def on_step_start(self, step: int) -> None:
        for callback in self._callbacks:
            callback.on_step_start(step)

    def on_step_end(self, record: StepRecord) -> None:
        for callback in self._callbacks:
            callback.on_step_end(record)

    def on_tasks_end(self, step: int, scores: Mapping[str, float]) -> None:
        for callback in self._callbacks:
            callback.on_tasks_end(step, scores)

    def on_evaluate_end(self, step: int, loss: float) -> None:
        for callback in self._callbacks:
            callback.on_evaluate_end(step, loss)

    def on_checkpoint_end(self, path: Path, saved: SaveRecord) -> None:
        for callback in self._callbacks:
            callback.on_checkpoint_end(path, saved)

    def on_rewind(self, step: int) -> None:
        for callback in self._callbacks:
            callback.on_rewind(step)

    def on_train_end(self) -> None:
        """Call every callback even if one of them raises: each has files of its own to close."""
        with ExitStack() as stack:
            for callback in reversed(self._callbacks):
                stack.callback(callback.on_train_end)


class MetricsCallback(Callback):
    """Writes metrics, evaluations and checkpoints.jsonl. First in order: no record must be lost.

    What the disk does not take waits in the writers; the run goes on.
    """

    priority = 100

    def __init__(
        self, metrics: MetricsWriter, evaluations: EvaluationWriter, saves: SaveWriter
    ) -> None:
        self._metrics = metrics
        self._evaluations = evaluations
        self._saves = saves
        self._scores: tuple[int, Mapping[str, float]] = (-1, {})

    def on_step_end(self, record: StepRecord) -> None:
        self._metrics.write(record)
        self._evaluations.begin()
        self._saves.begin()

    def on_tasks_end(self, step: int, scores: Mapping[str, float]) -> None:
        self._scores = (step, scores)

    def on_evaluate_end(self, step: int, loss: float) -> None:
        of_step, scores = self._scores
        self._evaluations.write(EvaluationRecord.of(step, loss, scores if of_step == step else {}))

    def on_checkpoint_end(self, path: Path, saved: SaveRecord) -> None:
        self._saves.write(saved)
        # A run resumed from here keeps these lines, so they must outlive a crash as it does.
        self._metrics.sync()
        self._evaluations.sync()
        self._saves.sync()

    def on_rewind(self, step: int) -> None:
        self._metrics.drop_after(step)
        self._evaluations.drop_after(step)

    def on_train_end(self) -> None:
        self._metrics.close()
        self._evaluations.close()
        self._saves.close()


class TrackerCallback(Callback):
    """Hands records to trackers, every `every_steps` steps, and every evaluation and checkpoint.

    A tracker that fails is left out from then on, with a warning: its curves can be drawn from
    metrics.jsonl, and are no reason to lose a run, whatever it is that a library of others raises.
    """

    priority = 50

    def __init__(self, trackers: Sequence[Tracker], every_steps: int) -> None:
        self._trackers = list(trackers)
        self._every_steps = every_steps
        self._step = 0

    def on_step_end(self, record: StepRecord) -> None:
        self._step = record.step
        if record.step % self._every_steps:
            return
        values = record.values()
        step = values.pop("step")
        numbers = {name: value for name, value in values.items() if not isinstance(value, str)}
        self._log(step, {f"train/{name}": float(value) for name, value in numbers.items()})

    def on_tasks_end(self, step: int, scores: Mapping[str, float]) -> None:
        self._log(step, {f"tasks/{name}": value for name, value in scores.items()})

    def on_evaluate_end(self, step: int, loss: float) -> None:
        perplexity = EvaluationRecord.of(step, loss).perplexity
        self._log(step, {"evaluation/loss": loss, "evaluation/perplexity": perplexity})

    def on_checkpoint_end(self, path: Path, saved: SaveRecord) -> None:
        values = saved.values()
        # Steps must not decrease, and training has gone on meanwhile.
        step = max(self._step, int(values.pop("step")))
        self._log(step, {f"checkpoint/{name}": float(value) for name, value in values.items()})

    def on_train_end(self) -> None:
        for tracker in list(self._trackers):
            self._try(tracker, tracker.close)

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        for tracker in list(self._trackers):
            self._try(tracker, lambda: tracker.log(step, values))  # noqa: B023  # called at once

    def _try(self, tracker: Tracker, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - see above
            self._trackers.remove(tracker)
            reason = " ".join(str(error).split()) or type(error).__name__
            text = "%s failed and is left out from now on (%s); %s has the same values"
            _LOGGER.warning(text, tracker.name, reason, METRICS_FILE)


class ProgressCallback(Callback):
    """Drives the line that a person watches. Last in order: it shows what is already recorded."""

    priority = -100

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_train_start(self, step: int) -> None:
        self._progress.start()

    def on_step_end(self, record: StepRecord) -> None:
        self._progress.update(record)

    def on_tasks_end(self, step: int, scores: Mapping[str, float]) -> None:
        self._progress.show_scores(step, scores)

    def on_evaluate_end(self, step: int, loss: float) -> None:
        self._progress.show_evaluation(step, loss)

    def on_checkpoint_end(self, path: Path, saved: SaveRecord) -> None:
        self._progress.show_checkpoint(path, saved)

    def on_train_end(self) -> None:
        self._progress.stop()


def replay(callback: Callback, folder: Path, last_step: int) -> None:
    """Let `callback` hear of the steps up to `last_step`, and evaluations, that the run in `folder`
    has recorded."""
    evaluations = {each.step: each for each in read_evaluations(folder / EVALUATIONS_FILE)}
    if 0 in evaluations:
        _replay_evaluation(callback, evaluations[0])
    for record in read_metrics(folder / METRICS_FILE):
        if record.step > last_step:
            break
        callback.on_step_end(record)
        if record.step in evaluations:
            _replay_evaluation(callback, evaluations[record.step])


def _replay_evaluation(callback: Callback, record: EvaluationRecord) -> None:
    scores = {name: value for name, value in (record.tasks or {}).items() if value is not None}
    if scores:
        callback.on_tasks_end(record.step, scores)
    callback.on_evaluate_end(record.step, record.loss)
