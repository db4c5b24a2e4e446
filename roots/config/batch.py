"""The batch arithmetic of a run: how many samples each rank takes, and in how many parts."""

from __future__ import annotations

from dataclasses import dataclass

from roots.config.rules.batch import batch_problems
from roots.config.rules.table import cross_section_problems
from roots.config.run import RunConfig
from roots.errors import RootsError


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is cut: global = micro x accumulation x data_parallel (samples)."""

    data_parallel: int
    micro_batch_size: int
    accumulation: int
    global_batch_size: int


def plan_batch(config: RunConfig, world_size: int) -> BatchPlan:
    """Derive data-parallel size and gradient accumulation for `world_size` ranks.

    Raises RootsError with every problem of the config on that many ranks.
    """
    lines = [*cross_section_problems(config), *batch_problems(config, world_size)]
    if lines:
        raise RootsError(*lines)
    parallel, training = config.parallel, config.training
    data_parallel = world_size // (parallel.model_ranks * parallel.context)
    return BatchPlan(
        data_parallel=data_parallel,
        micro_batch_size=training.micro_batch_size,
        accumulation=training.global_batch_size // (training.micro_batch_size * data_parallel),
        global_batch_size=training.global_batch_size,
    )
