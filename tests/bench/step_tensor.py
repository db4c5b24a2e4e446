"""TP2 on two one-thread processes against one such process, in tokens per second.

By the clock and not by CPU time, as waiting for the other rank is what tensor parallelism costs.
The two alternate.
"""

from __future__ import annotations

import time

from roots.device import launch_environment
from roots.training.assemble import start_process
from tests.bench.step_sides import Precision, Shape, engine_step, random_tokens, run_config
from tests.helpers.distributed import run_distributed

WARMUP_STEPS = 2


def rates(shape: Shape, precision: Precision, rounds: int, steps: int) -> dict[str, list[float]]:
    """Tokens per second of one process and of TP2, one entry a round."""
    found: dict[str, list[float]] = {"one": [], "tp2": []}
    for _ in range(rounds):
        for name, size in (("one", 1), ("tp2", 2)):
            answers = run_distributed(_measure, size, shape, precision, steps, timeout_seconds=3600)
            found[name].append(min(answers))
    return found


def _measure(rank: int, world_size: int, shape: Shape, precision: Precision, steps: int) -> float:
    environment = launch_environment()
    device = start_process(environment, environment.local_rank)
    config = run_config(shape, precision, tensor=world_size)
    step = engine_step(config, device, world_size)
    tokens_BT = random_tokens(shape)
    for _ in range(WARMUP_STEPS):
        step(tokens_BT)
    started = time.perf_counter()
    for _ in range(steps):
        step(tokens_BT)
    return steps * tokens_BT.numel() / (time.perf_counter() - started)
