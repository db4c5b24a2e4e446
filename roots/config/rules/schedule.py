"""Rules of how a run goes: its start, its schedule, its loss scale and the split of its data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from roots.errors import problem

if TYPE_CHECKING:
    from roots.config.run import RunConfig


def scale_floor_below_start(config: RunConfig) -> Iterator[str]:
    """An overflow lowers the loss scale."""
    scale = config.loss_scale
    if scale.minimum > 2.0**scale.initial_power:
        yield problem(
            "loss_scale.minimum",
            scale.minimum,
            f"must be at most the first scale, 2^loss_scale.initial_power={2**scale.initial_power}",
            "lower it, or raise loss_scale.initial_power",
        )


def weights_or_resume(config: RunConfig) -> Iterator[str]:
    """A run starts from weights alone or goes on with everything, not both."""
    checkpoint = config.checkpoint
    if checkpoint.weights is not None and checkpoint.resume not in ("auto", "never"):
        yield problem(
            "checkpoint.weights",
            checkpoint.weights,
            f"cannot stand beside checkpoint.resume={checkpoint.resume}",
            "set checkpoint.resume=auto, which goes on from this run's own checkpoints, "
            "or checkpoint.weights=null",
        )


def schedule_lengths_once(config: RunConfig) -> Iterator[str]:
    """A length is counted in steps or in tokens, not in both."""
    schedule = config.schedule
    if schedule.warmup_steps and schedule.warmup_tokens is not None:
        yield problem(
            "schedule.warmup_tokens",
            schedule.warmup_tokens,
            f"cannot stand beside schedule.warmup_steps={schedule.warmup_steps}",
            "keep one of the two",
        )
    if schedule.decay_steps is not None and schedule.decay_tokens is not None:
        yield problem(
            "schedule.decay_tokens",
            schedule.decay_tokens,
            f"cannot stand beside schedule.decay_steps={schedule.decay_steps}",
            "keep one of the two",
        )


def warmup_within_run(config: RunConfig) -> Iterator[str]:
    """The warmup ends within the run: beyond it the peak would never be reached."""
    schedule, steps = config.schedule, config.training.steps
    if schedule.warmup_steps > steps:
        yield problem(
            "schedule.warmup_steps",
            schedule.warmup_steps,
            f"must be at most training.steps={steps}",
            f"set it to {max(1, steps // 10)}, or raise training.steps",
        )
    if schedule.warmup_tokens is not None:
        tokens = steps * config.tokens_per_step
        if schedule.warmup_tokens > tokens:
            yield problem(
                "schedule.warmup_tokens",
                schedule.warmup_tokens,
                f"must be at most the {tokens} tokens of training.steps={steps}",
                f"set it to {max(1, tokens // 10)}, or raise training.steps",
            )


def decay_has_an_end(config: RunConfig) -> Iterator[str]:
    """A shape that never ends its decay takes no length of one."""
    schedule = config.schedule
    if schedule.name not in ("constant", "inverse_sqrt"):
        return
    for name, value in (
        ("schedule.decay_steps", schedule.decay_steps),
        ("schedule.decay_tokens", schedule.decay_tokens),
    ):
        if value is not None:
            yield problem(
                name,
                value,
                f"has no effect with schedule.name={schedule.name}",
                f"set {name}=null, or schedule.name to cosine, linear or wsd",
            )


def minimum_below_peak(config: RunConfig) -> Iterator[str]:
    """The decay goes down."""
    low, peak = config.schedule.min_learning_rate, config.optimizer.learning_rate
    if low > peak:
        yield problem(
            "schedule.min_learning_rate",
            low,
            f"must be at most optimizer.learning_rate={peak}",
            f"set it to {peak / 10:g} or less",
        )


def split_is_a_distribution(config: RunConfig) -> Iterator[str]:
    """The three parts of a split are shares, and training gets one."""
    split = config.data.split
    if min(split) < 0 or split[0] <= 0:
        yield problem(
            "data.split",
            ",".join(f"{part:g}" for part in split),
            "must be three weights of at least 0, the first above 0",
            "use for example 969,30,1",
        )


SCHEDULE_RULES = (
    weights_or_resume,
    schedule_lengths_once,
    warmup_within_run,
    decay_has_an_end,
    minimum_below_peak,
    split_is_a_distribution,
)
