"""Schedules that cannot be meant: the peak comes before the decay, in steps, in tokens or mixed."""

from __future__ import annotations

from typing import Any

import pytest

from roots.config import parse_config
from roots.training.schedule import learning_rate
from tests.helpers.refusals import refusals

STEPS = 20
TOKENS = 8 * 256


def tree(**schedule: Any) -> dict[str, Any]:
    training = {"steps": STEPS, "global_batch_size": 8}
    return {"training": training, "schedule": schedule}


@pytest.mark.parametrize("name", ["cosine", "linear"])
@pytest.mark.parametrize(
    ("schedule", "decay", "warmup", "end"),
    [
        ({"warmup_steps": 8, "decay_steps": 8}, "decay_steps=8", "warmup_steps=8", 8),
        (
            {"warmup_tokens": 8 * TOKENS, "decay_tokens": 5 * TOKENS},
            f"decay_tokens={5 * TOKENS}",
            f"warmup_tokens={8 * TOKENS}",
            5,
        ),
        (
            {"warmup_steps": 8, "decay_tokens": 5 * TOKENS},
            f"decay_tokens={5 * TOKENS}",
            "warmup_steps=8",
            5,
        ),
        (
            {"warmup_tokens": 8 * TOKENS, "decay_steps": 5},
            "decay_steps=5",
            f"warmup_tokens={8 * TOKENS}",
            5,
        ),
    ],
    ids=["equal", "tokens", "steps-tokens", "tokens-steps"],
)
def test_decay_that_ends_within_the_warmup_is_refused(
    name: str, schedule: dict[str, int], decay: str, warmup: str, end: int
) -> None:
    assert refusals(tree(name=name, **schedule)) == (
        f"schedule.{decay}: must be after the warmup, schedule.{warmup}, but the decay would end "
        f"at step {end} and the warmup at step 8; raise it, set it to null for "
        "training.steps=20, or shorten the warmup",
    )


def test_decay_of_wsd_is_no_longer_than_the_run() -> None:
    assert refusals(tree(name="wsd", decay_tokens=21 * TOKENS)) == (
        f"schedule.decay_tokens={21 * TOKENS}: is how long the decay at the end of a wsd run "
        "lasts, 21 steps, and must be at most training.steps=20; set it to 2 steps or so, or "
        "raise training.steps",
    )


@pytest.mark.parametrize(
    ("schedule", "warmup", "decay"),
    [
        ({"warmup_steps": 10, "decay_steps": 12}, "warmup_steps=10", "schedule.decay_steps=12"),
        ({"warmup_steps": 20}, "warmup_steps=20", "a tenth of the run"),
        (
            {"warmup_steps": 12, "decay_tokens": 12 * TOKENS},
            "warmup_steps=12",
            f"schedule.decay_tokens={12 * TOKENS}",
        ),
    ],
    ids=["both", "default", "mixed"],
)
def test_wsd_reaches_its_peak(schedule: dict[str, int], warmup: str, decay: str) -> None:
    (line,) = refusals(tree(name="wsd", **schedule))
    assert line.startswith(f"schedule.{warmup}: leaves no room for the decay of wsd, {decay}: ")
    assert line.endswith(
        " steps are more than training.steps=20, so the peak would never be reached; shorten "
        "either, or raise training.steps"
    )


@pytest.mark.parametrize(
    "schedule",
    [
        {"warmup_steps": 8, "decay_steps": 9},
        {"warmup_steps": 20},
        {"decay_steps": 5},
        {"warmup_steps": 8, "decay_steps": 40},
        {"name": "wsd", "warmup_steps": 10, "decay_steps": 10},
        {"name": "wsd", "warmup_steps": 10, "decay_tokens": 11 * TOKENS},
        {"name": "wsd", "decay_steps": 20},
        {"name": "constant", "warmup_steps": 20},
        {"name": "inverse_sqrt", "warmup_tokens": 20 * TOKENS},
    ],
    ids=str,
)
def test_what_passes_reaches_its_peak(schedule: dict[str, Any]) -> None:
    config = parse_config(tree(**schedule))
    peak = config.optimizer.learning_rate
    rates = [
        learning_rate(config.schedule, peak, step, STEPS, config.tokens_per_step)
        for step in range(STEPS)
    ]
    assert max(rates) == peak
