"""Rules that span fields: one small function a rule, each yielding the lines of its violations.

A rule that needs only one field is a bound of that field and stands in its section.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from roots.config.rules_context import CONTEXT_RULES
from roots.config.rules_data import DATA_RULES
from roots.config.rules_encoder import ENCODER_RULES
from roots.config.rules_experts import EXPERT_RULES, expert_axis_problems
from roots.config.rules_pipeline import PIPELINE_RULES, accumulation_problems
from roots.config.rules_zero import ZERO_RULES, replica_problems
from roots.errors import problem

if TYPE_CHECKING:
    from roots.config.run import RunConfig

Rule = Callable[["RunConfig"], Iterable[str]]


def heads_divide_hidden(config: RunConfig) -> Iterator[str]:
    """A head has a whole number of dimensions."""
    model = config.model
    if model.head_dim is None and model.hidden_size % model.num_heads:
        yield problem(
            "model.num_heads",
            model.num_heads,
            f"must divide model.hidden_size={model.hidden_size}",
            f"set it to one of {_divisors_near(model.hidden_size, model.num_heads)}, "
            "or set model.head_dim",
        )


def kv_heads_divide_heads(config: RunConfig) -> Iterator[str]:
    """Every key/value head serves the same number of query heads."""
    model = config.model
    if model.num_heads % model.kv_heads:
        yield problem(
            "model.num_kv_heads",
            model.kv_heads,
            f"must divide model.num_heads={model.num_heads}",
            f"set it to one of {_divisors_near(model.num_heads, model.kv_heads)}",
        )


def rotary_needs_even_head(config: RunConfig) -> Iterator[str]:
    """Rotary embeddings turn pairs of dimensions."""
    model = config.model
    if model.position == "rotary" and model.rotary_size < 2:
        yield problem(
            "model.rotary_fraction",
            model.rotary_fraction,
            f"must leave at least 2 of {model.head_size} dimensions to rotate",
            "raise it, or use fewer heads",
        )


def rotary_scaling_is_whole(config: RunConfig) -> Iterator[str]:
    """A stretch has rotary positions, a factor and, by kind, the length it starts from."""
    model, scaling = config.model, config.model.rotary_scaling
    name = "model.rotary_scaling"
    if scaling.kind == "none":
        if scaling.factor != 1.0:
            fix = "set model.rotary_scaling.kind to linear, ntk, yarn or llama3"
            yield problem(f"{name}.factor", scaling.factor, "has no effect with kind=none", fix)
        return
    if model.position != "rotary":
        rule = f"needs model.position=rotary, but it is {model.position}"
        yield problem(f"{name}.kind", scaling.kind, rule, "set model.position=rotary, or kind=none")
    if scaling.kind in ("yarn", "llama3") and scaling.original_length is None:
        rule = f"must be set with {name}.kind={scaling.kind}"
        fix = "set it to the sequence length of the model before the stretch"
        yield problem(f"{name}.original_length", None, rule, fix)
    if scaling.kind == "llama3" and scaling.low_frequency >= scaling.high_frequency:
        rule = f"must be below {name}.high_frequency={scaling.high_frequency:g}"
        yield problem(f"{name}.low_frequency", scaling.low_frequency, rule, "use 1 and 4")


def tensor_divides_model(config: RunConfig) -> Iterator[str]:
    """Tensor parallelism cuts heads, MLP columns and vocabulary evenly."""
    model, tensor = config.model, config.parallel.tensor
    for name, size in (
        ("model.num_heads", model.num_heads),
        ("model.num_kv_heads", model.kv_heads),
        ("model.ffn_hidden_size", model.ffn_size),
    ):
        if size % tensor:
            yield problem(
                "parallel.tensor",
                tensor,
                f"must divide {name}={size}",
                f"set parallel.tensor to one of {_divisors_near(size, tensor)}, or change {name}",
            )
    if model.padded_vocab_size % tensor:
        yield problem(
            "parallel.tensor",
            tensor,
            f"must divide the padded vocabulary of {model.padded_vocab_size}",
            f"set model.vocab_multiple to a multiple of {tensor}",
        )


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


RULES: tuple[Rule, ...] = (
    heads_divide_hidden,
    kv_heads_divide_heads,
    rotary_needs_even_head,
    rotary_scaling_is_whole,
    tensor_divides_model,
    *EXPERT_RULES,
    *PIPELINE_RULES,
    *ZERO_RULES,
    scale_floor_below_start,
    *CONTEXT_RULES,
    weights_or_resume,
    schedule_lengths_once,
    warmup_within_run,
    decay_has_an_end,
    minimum_below_peak,
    split_is_a_distribution,
    *ENCODER_RULES,
    *DATA_RULES,
)


def cross_section_problems(config: RunConfig) -> list[str]:
    """Apply every rule; return all violations."""
    return [line for rule in RULES for line in rule(config)]


def has_training_data(config: RunConfig) -> Iterator[str]:
    """What `roots train` asks of a config besides RULES: something to learn from."""
    if not config.data.train:
        fix = "set data.train to the prefix that `roots preprocess --out PREFIX` wrote"
        yield problem("data.train", [], "must name at least one dataset", fix)


def batch_rule(world_size: int) -> Rule:
    """The rule that the batch and the layout fit `world_size` ranks; 0: the fewest possible."""

    def batch_fits_ranks(config: RunConfig) -> Iterable[str]:
        return batch_problems(config, world_size or fewest_ranks(config))

    return batch_fits_ranks


def fewest_ranks(config: RunConfig) -> int:
    """The fewest ranks on which the layout can run: experts are spread over replicas."""
    parallel = config.parallel
    return parallel.model_ranks * math.lcm(parallel.context, parallel.expert)


def batch_problems(config: RunConfig, world_size: int) -> list[str]:
    """Violations that depend on the number of ranks."""
    parallel, training = config.parallel, config.training
    sample_ranks = parallel.model_ranks * parallel.context
    if world_size % sample_ranks:
        sizes = "parallel.tensor x parallel.context x parallel.pipeline"
        return [
            problem(
                "world size",
                world_size,
                f"must be a multiple of {sizes} = {sample_ranks}",
                f"start {sample_ranks * max(1, world_size // sample_ranks)} ranks, "
                "or change the degrees",
            )
        ]
    data_parallel = world_size // sample_ranks
    lines = expert_axis_problems(config, data_parallel * parallel.context)
    unit = training.micro_batch_size * data_parallel
    if training.global_batch_size % unit:
        near = max(unit, training.global_batch_size // unit * unit)
        lines.append(
            problem(
                "training.global_batch_size",
                training.global_batch_size,
                f"must be a multiple of training.micro_batch_size={training.micro_batch_size} "
                f"x data-parallel size {data_parallel} = {unit}",
                f"set it to {near} or {near + unit}",
            )
        )
        return lines
    return [
        *lines,
        *accumulation_problems(config, unit),
        *replica_problems(config, data_parallel * parallel.context),
    ]


def _divisors_near(number: int, wish: int) -> str:
    """List the divisors of `number` around `wish`, for the fix of a message."""
    divisors = [value for value in range(1, number + 1) if number % value == 0]
    below = [value for value in divisors if value <= wish][-2:]
    above = [value for value in divisors if value > wish][:2]
    return ", ".join(str(value) for value in [*below, *above])
