"""The rule that a batch and a layout fit a number of ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from roots.config.rules.experts import expert_axis_problems
from roots.config.rules.pipeline import accumulation_problems
from roots.config.rules.zero import replica_problems
from roots.errors import problem

if TYPE_CHECKING:
    from roots.config.run import RunConfig


def batch_rule(world_size: int) -> Callable[[RunConfig], Iterable[str]]:
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
