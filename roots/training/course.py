"""What is different about a run that goes on: fields changed since its checkpoint, and the rate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from roots.config.run import RunConfig
from roots.training.schedule import learning_rate

# Where a run lies and what it goes on from is no change of the run.
_SILENT = ("run.name", "run.directory", "checkpoint.resume", "checkpoint.weights")
# These change what is shown, kept or measured, and no number of the course.
_BESIDE_THE_COURSE = (
    "run.",
    "checkpoint.",
    "evaluation.",
    "tracking.",
    "watchdog.",
    "stop.",
    "training.steps",
    # A source that is the same one; see _same_data.
    "data.train[",
)
_WITHOUT_EFFECT = {
    "loss_scale.initial_power": "no effect on a run that goes on: the scale is the checkpoint's",
}


def changed_fields(before: RunConfig, now: RunConfig) -> dict[str, str]:
    """Field to the line that tells its change, for every field that is not as it was.

    Of a run that may go on: within a phase of the data they are the same, wherever they lie.
    """
    old = dict(_fields(before.model_dump(mode="json")))
    lines = {}
    same_phase = now.data.phase == before.data.phase
    for name, value in _fields(now.model_dump(mode="json")):
        if name == "data.train" and same_phase:
            lines |= _same_data(before, now)
        elif old[name] != value and name not in _SILENT:
            note = f" ({_WITHOUT_EFFECT[name]})" if name in _WITHOUT_EFFECT else ""
            lines[name] = f"{name}={value!r}: was {old[name]!r} in the checkpoint{note}"
    return lines


def _same_data(before: RunConfig, now: RunConfig) -> Iterator[tuple[str, str]]:
    """As `changed_fields`, of data.train, whose change gives no other samples."""
    notes = {"prefix": "the same data at another place", "weight": "the same share"}
    for number, (was, source) in enumerate(zip(before.data.train, now.data.train, strict=True)):
        for field, note in notes.items():
            value, old = getattr(source, field), getattr(was, field)
            if value != old:
                name = f"data.train[{number}].{field}"
                yield name, f"{name}={value!r}: was {old!r} in the checkpoint ({note})"


def rate_change(before: RunConfig, now: RunConfig, step: int) -> str | None:
    """The line that tells of another learning rate after `step` steps; None if it is as it was."""
    planned, new = _rate(before, step), _rate(now, step)
    if step >= now.training.steps or math.isclose(planned, new, rel_tol=1e-9):
        return None
    last = f"{_rate(before, step - 1):.6g} in step {step}, " if step > 0 else ""
    return (
        f"learning rate: {last}{new:.6g} in step {step + 1}, "
        f"which would have had {planned:.6g} under the checkpoint's config"
    )


def leaves_the_course(changed: Mapping[str, str], rate: str | None) -> bool:
    """Whether steps that a run repeats from its checkpoint come out otherwise than they did."""
    return rate is not None or any(not name.startswith(_BESIDE_THE_COURSE) for name in changed)


def finished_line(config: RunConfig, done: int) -> str:
    """What to say of a run that is started with all its steps done, and how to go on."""
    return (
        f"training.steps={config.training.steps}: the run has done {done} steps, so it is finished "
        "and nothing was trained; to go on set training.steps higher, to begin another run set "
        "another run.name"
    )


def _rate(config: RunConfig, step: int) -> float:
    peak, steps = config.optimizer.learning_rate, config.training.steps
    return learning_rate(config.schedule, peak, step, steps, config.tokens_per_step)


def _fields(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field by its dotted name."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
