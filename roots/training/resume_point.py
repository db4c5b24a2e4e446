"""Where training stands, and goes on from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ResumePoint:
    """Where training goes on: the steps done and the samples they consumed.

    `new_course`: steps that the run had done after this point come out otherwise now. Known on
    global rank 0. `evaluation`: the held-out loss after `step`, if measured and finite.
    """

    step: int
    consumed_samples: int
    new_course: bool = False
    evaluation: float | None = None
