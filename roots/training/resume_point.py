"""Where training stands, and goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ResumePoint:
    """Where training goes on: the steps done and the samples they consumed.

    `new_course`: steps that the run had done after this point come out otherwise now. Known on
    global rank 0. `evaluation`: the held-out loss after `step`, if measured and finite. `history`:
    what the run remembers of bad numbers, as JSON (anomalies/guard.py).
    """

    step: int
    consumed_samples: int
    new_course: bool = False
    evaluation: float | None = None
    history: Mapping[str, Any] = field(default_factory=dict)
