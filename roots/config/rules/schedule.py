"""Rules of how a run goes: its start, its schedule, its loss scale and the split of its data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from roots.config.training import WSD_DECAY_DIVISOR
from roots.errors import problem

if TYPE_CHECKING:
    from roots.config.run import RunConfig
    from roots.config.training import ScheduleConfig


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


def peak_before_the_decay(config: RunConfig) -> Iterator[str]:
    """The rate reaches its peak before it goes down; lengths may be in steps, in tokens or mixed.

    cosine and linear go down from the end of the warmup to the end of the decay, wsd over the last
    steps of the run.
    """
    schedule, steps = config.schedule, config.training.steps
    if schedule.name not in ("cosine", "linear", "wsd"):
        return
    warmup = schedule.warmup_in_steps(config.tokens_per_step)
    if warmup > steps:
        return
    if schedule.name == "wsd":
        yield from _of_wsd(config, warmup)
        return
    decay = schedule.decay_in_steps(steps, config.tokens_per_step)
    if warmup > 0 and warmup >= decay and (schedule.decay_steps or schedule.decay_tokens):
        name, value = _set_one("decay", schedule)
        yield problem(
            name,
            value,
            f"must be after the warmup, {_set_length('warmup', schedule)}, but the decay would "
            f"end at step {decay:g} and the warmup at step {warmup:g}",
            f"raise it, set it to null for training.steps={steps}, or shorten the warmup",
        )


def _of_wsd(config: RunConfig, warmup: float) -> Iterator[str]:
    """The decay of wsd is a length at the end of the run, which the warmup leaves free."""
    schedule, steps = config.schedule, config.training.steps
    decay = schedule.decay_in_steps(steps, config.tokens_per_step)
    name, value = _set_one("decay", schedule)
    if decay > steps:
        yield problem(
            name,
            value,
            f"is how long the decay at the end of a wsd run lasts, {decay:g} steps, and must be at "
            f"most training.steps={steps}",
            f"set it to {max(1, steps // WSD_DECAY_DIVISOR)} steps or so, or raise training.steps",
        )
    elif warmup + decay > steps + 1:
        given = f"{name}={value}" if value is not None else "a tenth of the run"
        yield problem(
            *_set_one("warmup", schedule),
            f"leaves no room for the decay of wsd, {given}: {warmup:g} and {decay:g} steps are "
            f"more than training.steps={steps}, so the peak would never be reached",
            "shorten either, or raise training.steps",
        )


def _set_one(length: str, schedule: ScheduleConfig) -> tuple[str, int | None]:
    """Name and value of the field in which a length is given."""
    tokens = getattr(schedule, f"{length}_tokens")
    if tokens is not None:
        return f"schedule.{length}_tokens", tokens
    return f"schedule.{length}_steps", getattr(schedule, f"{length}_steps")


def _set_length(length: str, schedule: ScheduleConfig) -> str:
    name, value = _set_one(length, schedule)
    return f"{name}={value}"


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
    peak_before_the_decay,
    minimum_below_peak,
    split_is_a_distribution,
)
