"""What a run does when its numbers go bad: leave out the step, go back, or end; alike on all ranks.

A step is bad whose loss is not finite, or a gradient (in fp16 once the loss scale is at its floor;
above it a lower scale is the answer), or whose loss is a spike. The engine has left out its update
by then, whatever the policy: skip lets the run go on from there; rewind goes back to the last
snapshot in memory, and the batch of the bad step is jumped over, as if the data did not hold it;
stop ends the run. Every bad step is a line of RUN/anomalies.jsonl:

    step, kind (loss, gradient, floor, spike), policy, loss, zscore (of a spike), loss_scale,
    samples ([first, last] of its batch in the order of the run), culprit (first parameter whose
    gradient was not finite, and its rank), back_to (the step that a rewind went back to)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from roots.config.run import RunConfig
from roots.data.sampler import SampleRange
from roots.errors import ExitCode, RootsError, problem
from roots.log import get_logger
from roots.parallel.mesh import Mesh
from roots.training.anomalies.event_log import EventLog
from roots.training.anomalies.snapshot import Snapshot
from roots.training.anomalies.spikes import LossWindow
from roots.training.callbacks.metrics import StepRecord
from roots.training.divergence import SkipStreak
from roots.training.engine.step import Engine
from roots.training.resume_point import ResumePoint

_logger = get_logger(__name__)


@dataclass(frozen=True)
class _Kept:
    """A point in the run, and what the guard remembered there."""

    point: ResumePoint
    losses: list[float]


class Guard:
    """Watches the steps of `engine` from `start` on. Every method is called by all ranks."""

    def __init__(
        self, config: RunConfig, engine: Engine, mesh: Mesh, start: ResumePoint, events: EventLog
    ) -> None:
        """Go on from what `start.history` remembers. Raises RootsError where the config does not
        provide the data that it has jumped over."""
        self._settings = config.anomaly
        self._engine, self._events = engine, events
        self._speaks = mesh.rank == 0
        self._streak = SkipStreak(self._speaks)
        self.skipped: list[SampleRange] = [(a, b) for a, b in start.history.get("skipped", [])]
        self._check_spare(config)
        self._window = LossWindow(config.anomaly.spike_window, start.history.get("losses", []))
        self._watches = config.anomaly.spike != "ignore"
        if self._watches:
            engine.is_spike = self._is_spike
        self._snapshot = Snapshot(engine) if config.anomaly.rewinds else None
        self._kept: _Kept | None = None
        self.passed(start)

    def see(self, record: StepRecord, samples: SampleRange) -> ResumePoint | None:
        """Hear of a step made on `samples`; the point to go back to, None to go on.

        Raises RootsError with exit code DIVERGED where the policy is to stop, where too many steps
        in a row were skipped, or too many batches jumped over.
        """
        kind = record.anomaly
        self._streak.see(record, samples)
        if kind is None:
            if self._watches:
                self._window.add(self._engine.agreed_loss)
            return None
        policy = self._settings.spike if kind == "spike" else self._settings.non_finite
        exhausted = len(self.skipped) >= self._settings.max_rewinds
        back = self._kept if policy == "rewind" and not exhausted else None
        self._tell(record, samples, policy, back)
        if policy == "stop":
            raise self._ended(record, samples, f"is bad, and anomaly.{_field(kind)}=stop")
        if policy == "skip":
            self._streak.check()
            return None
        if back is None:
            most = self._settings.max_rewinds
            raise self._ended(record, samples, f"is bad after anomaly.max_rewinds={most} rewinds")
        return self._rewind(back, samples)

    def passed(self, point: ResumePoint, saved: bool = False) -> None:
        """The run is whole at `point`: take a snapshot if one is due. `saved`: as a checkpoint."""
        every = self._settings.snapshot_every_steps
        if self._snapshot is None or not (self._kept is None or saved or point.step % every == 0):
            return
        if self._snapshot.take():
            self._kept = _Kept(point, self._window.losses)

    def history(self) -> Mapping[str, Any]:
        """What a run that goes on from here must remember, for JSON."""
        return {
            **({"skipped": [list(each) for each in self.skipped]} if self.skipped else {}),
            **({"losses": self._window.losses} if self._watches else {}),
        }

    def _is_spike(self, loss: float) -> bool:
        return self._window.zscore(loss) > self._settings.spike_zscore

    def _rewind(self, back: _Kept, samples: SampleRange) -> ResumePoint:
        assert self._snapshot is not None
        self._snapshot.restore()
        self._window = LossWindow(self._settings.spike_window, back.losses)
        self.skipped.append(samples)
        return replace(back.point, history=self.history())

    def _tell(
        self, record: StepRecord, samples: SampleRange, policy: str, back: _Kept | None
    ) -> None:
        spike = record.anomaly == "spike"
        zscore = self._window.zscore(self._engine.agreed_loss) if spike else None
        self._events.write(
            step=record.step,
            kind=record.anomaly,
            policy=policy,
            loss=record.loss,
            zscore=zscore,
            loss_scale=record.loss_scale,
            samples=[samples[0], samples[1] - 1],
            culprit=record.overflow,
            back_to=None if back is None else back.point.step,
        )
        if not self._speaks:
            return
        what = f"loss {record.loss:.4g}, {zscore:.1f} deviations high" if spike else _fault(record)
        then = "" if back is None else f", back to step {back.point.step} without them"
        _logger.warning(
            "step %d: %s, on samples %d to %d: %s%s",
            record.step, what, samples[0], samples[1] - 1, policy, then,
        )  # fmt: skip

    def _ended(self, record: StepRecord, samples: SampleRange, rule: str) -> RootsError:
        what = "its loss is a spike" if record.anomaly == "spike" else _fault(record)
        text = f"{rule} ({what}; samples {samples[0]} to {samples[1] - 1}); nothing of it is saved"
        fix = "resume from an earlier checkpoint with a lower optimizer.learning_rate"
        line = problem(f"step {record.step}", None, text, fix)
        return RootsError(line, exit_code=ExitCode.DIVERGED, speaks=self._speaks)

    def _check_spare(self, config: RunConfig) -> None:
        jumped = len(self.skipped)
        if jumped > config.anomaly.spare_batches:
            rule = f"the checkpoint has jumped over {jumped} batches, for which there is no spare"
            fix = f"set anomaly.max_rewinds={jumped} or more, and anomaly.non_finite=rewind"
            value = config.anomaly.max_rewinds
            raise RootsError(problem("anomaly.max_rewinds", value, rule, fix), speaks=self._speaks)


def history_of_new_phase(history: Mapping[str, Any]) -> Mapping[str, Any]:
    """What of `history` holds where other data begin, of which the losses before say nothing."""
    return {name: value for name, value in history.items() if name != "losses"}


def _field(kind: str) -> str:
    return "spike" if kind == "spike" else "non_finite"


def _fault(record: StepRecord) -> str:
    """What is not finite, in words."""
    if record.anomaly == "loss":
        return f"the loss is {record.loss}"
    where = f"the gradient of {record.overflow} is not finite"
    if record.anomaly == "floor":
        return f"{where} at the lowest loss scale, {record.loss_scale:g}"
    return where
