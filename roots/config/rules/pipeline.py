"""Rules of the pipeline: schedules, partitions and what is computed again."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

from roots.config.partition import nearest_for_pair
from roots.errors import problem

if TYPE_CHECKING:
    from roots.config.run import RunConfig


def _layers_of(config: RunConfig) -> str:
    """What counts the blocks that stages share."""
    encoder = "model.num_encoder_layers + " if config.model.encoder_layers else ""
    return f"{encoder}model.num_layers"


def enough_layers_for_stages(config: RunConfig) -> Iterator[str]:
    """Every pipeline stage holds at least one block."""
    parallel, layers = config.parallel, config.model.num_layers + config.model.encoder_layers
    if parallel.num_stages <= layers:
        return
    if parallel.pipeline == parallel.num_stages:
        rule = f"must be at most {_layers_of(config)}={layers}"
        fix = f"set parallel.pipeline to {layers} or less, or add layers"
    else:
        rule = (
            f"has {parallel.num_stages} stages with parallel.pipeline_schedule=dualpipev, two a "
            f"rank, and each needs one of {_layers_of(config)}={layers}"
        )
        most = layers // 2
        less = f"set parallel.pipeline to {most} or less" if most > 1 else "use 1f1b"
        fix = f"{less}, or model.num_layers to {parallel.num_stages} or more"
    yield problem("parallel.pipeline", parallel.pipeline, rule, fix)


def schedule_needs_pipeline(config: RunConfig) -> Iterator[str]:
    """DualPipeV folds a pipeline of at least two ranks."""
    parallel = config.parallel
    if parallel.pipeline_schedule == "dualpipev" and parallel.pipeline == 1:
        yield problem(
            "parallel.pipeline_schedule",
            "dualpipev",
            "needs ranks to send to, but parallel.pipeline=1",
            "set parallel.pipeline=2, or parallel.pipeline_schedule=1f1b",
        )


def partition_covers_layers(config: RunConfig) -> Iterator[str]:
    """An explicit partition gives every stage a block, and every block a stage."""
    parallel, layers = config.parallel, config.model.num_layers + config.model.encoder_layers
    blocks, stages = parallel.pipeline_partition, parallel.num_stages
    if isinstance(blocks, str) or stages > layers:
        return
    share, rest = divmod(layers, stages)
    even = [share + (stage < rest) for stage in range(stages)]
    if config.model.encoder_layers and stages > 1:
        even = nearest_for_pair(even, config.model.encoder_layers)
    if len(blocks) != stages:
        rule = f"must have one number for each of the {stages} stages, not {len(blocks)}"
    elif min(blocks) < 1:
        rule = "must give every stage at least one block"
    elif sum(blocks) != layers:
        rule = f"must sum to {_layers_of(config)}={layers}, not {sum(blocks)}"
    else:
        return
    yield problem(
        "parallel.pipeline_partition", list(blocks), rule, f"set it to {even}, or to uniform"
    )


def stages_hold_one_stack(config: RunConfig) -> Iterator[str]:
    """An explicit partition cuts an encoder-decoder at the end of the encoder, as the named ones do
    (roots/config/partition.py, pair_boundaries).

    Numbers would be right without it, but on a stage of both stacks the encoder's part would run
    backward twice: DeepSpeed runs one backward pass for each tensor that a stage sends.
    """
    blocks, source = config.parallel.pipeline_partition, config.model.encoder_layers
    if isinstance(blocks, str) or not source or len(blocks) == 1:
        return
    whole = sum(blocks) == config.model.num_layers + source and min(blocks) > 0
    if not whole or len(blocks) != config.parallel.num_stages or source in accumulate(blocks):
        return
    yield problem(
        "parallel.pipeline_partition",
        list(blocks),
        f"must cut at the end of the encoder, so that its first numbers sum to {source} "
        "(model.num_encoder_layers), because a stage of both stacks runs the encoder's part "
        "backward twice",
        f"set it to {nearest_for_pair(blocks, source)}, or to uniform",
    )


def every_of_recompute(config: RunConfig) -> Iterator[str]:
    """A choice of blocks to recompute needs something that is recomputed."""
    parallel = config.parallel
    if parallel.recompute_every > 1 and parallel.recompute == "none":
        yield problem(
            "parallel.recompute_every",
            parallel.recompute_every,
            "has no effect with parallel.recompute=none",
            "set parallel.recompute=full or selective, or parallel.recompute_every=1",
        )


PIPELINE_RULES = (
    enough_layers_for_stages,
    schedule_needs_pipeline,
    partition_covers_layers,
    stages_hold_one_stack,
    every_of_recompute,
)


def accumulation_problems(config: RunConfig, unit: int) -> Iterator[str]:
    """DualPipeV fills both directions of the V; `unit` is the samples of one micro-batch of all."""
    parallel, training = config.parallel, config.training
    least = 2 * parallel.pipeline
    accumulation = training.global_batch_size // unit
    if parallel.pipeline_schedule == "dualpipev" and accumulation < least:
        yield problem(
            "training.global_batch_size",
            training.global_batch_size,
            f"gives {accumulation} micro-batches a step, but parallel.pipeline_schedule=dualpipev "
            f"needs at least 2 x parallel.pipeline = {least}",
            f"set it to {unit * least} or more, or parallel.pipeline_schedule=1f1b",
        )
