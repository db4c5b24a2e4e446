"""A plausible step record for tests that only care about some of its fields."""

from __future__ import annotations

import dataclasses

from roots.training.callbacks.metrics import StepRecord


def step_record(step: int, **changes: object) -> StepRecord:
    """Record of `step` in a run whose loss falls; `changes` replaces fields."""
    made = StepRecord(
        step=step,
        consumed_samples=8 * step,
        consumed_tokens=2048 * step,
        loss=2.0 + 3.0 / step,
        lr=1e-3,
        grad_norm=0.5,
        loss_scale=65536.0,
        skipped=False,
        step_seconds=0.25,
        tokens_per_second=8192.0,
        tflops=0.1,
        mfu=0.4,
        memory_bytes=123,
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]
