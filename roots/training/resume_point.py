"""Where training stands, and goes on from."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from roots.checkpoint.file_record import FileRecord
from roots.checkpoint.manifest import Layout, Manifest
from roots.config.training import BY_LOSS
from roots.data.record import DataRecord


@dataclass(frozen=True)
class ResumePoint:
    """Where training goes on: the steps done and the samples they consumed.

    `new_course`: steps that the run had done after this point come out otherwise now. Known on
    global rank 0. `evaluation`: the held-out loss after `step`, if measured and finite. `best`:
    what the run judges its checkpoints by, and this one's cost by that (Manifest.best). `history`:
    what the run remembers of bad numbers, as JSON (anomalies/guard.py). `data`: what it reads, and
    since when.
    """

    step: int
    consumed_samples: int
    new_course: bool = False
    evaluation: float | None = None
    best: tuple[str, float | None] = (BY_LOSS, None)
    history: Mapping[str, Any] = field(default_factory=dict)
    data: DataRecord = field(default_factory=DataRecord)

    def manifest(
        self, layout: Layout, files: dict[str, FileRecord], state: dict[str, Any]
    ) -> Manifest:
        """The manifest of a checkpoint of this point, from which `files` and `state` go on.

        It is saved now.
        """
        return Manifest(
            self.step,
            self.consumed_samples,
            layout,
            files,
            evaluation=self.evaluation,
            best=self.best,
            state=state,
            history=dict(self.history),
            data=self.data,
            saved=int(time.time()),
        )
