"""What looks after the machines of a run, each check every so many steps (the section `checks`)."""

from __future__ import annotations

from collections.abc import Sequence

from roots.config.run import RunConfig
from roots.data.batch import Batch
from roots.training.anomalies.event_log import EventLog
from roots.training.anomalies.pace import PaceCheck
from roots.training.anomalies.replay import check_replay
from roots.training.anomalies.replicas import ReplicaCheck
from roots.training.engine.step import Engine


class Checks:
    """The checks of a run; both methods are called by all ranks."""

    def __init__(self, config: RunConfig, engine: Engine, rank_times: EventLog) -> None:
        self._settings = config.checks
        self._engine = engine
        self._rank_times = rank_times
        self._pace: PaceCheck | None = None

    def before_step(self, step: int, micro_batches: Sequence[Batch], waited: float) -> None:
        """Step `step` is about to begin, for whose data this rank has `waited` so many seconds.

        Raises RootsError with exit code FAULTY.
        """
        if _due(step, self._settings.replay_every_steps):
            check_replay(self._engine, micro_batches[0], step)
        # One rank alone has no peers.
        if _due(step, self._settings.pace_every_steps) and self._engine.mesh.world.size > 1:
            if self._pace is None:
                engine, factor = self._engine, self._settings.slow_rank
                self._pace = PaceCheck(
                    engine.module, engine.mesh, engine.device, self._rank_times, factor
                )
            self._pace.begin(waited)

    def after_step(self, step: int) -> None:
        """Step `step` is done. Raises RootsError with exit code FAULTY."""
        if self._pace is not None and _due(step, self._settings.pace_every_steps):
            self._pace.end(step)
        if _due(step, self._settings.replicas_every_steps):
            ReplicaCheck(self._engine.module, self._engine.mesh).check(step)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
