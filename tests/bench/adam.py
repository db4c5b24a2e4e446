"""The AdamW candidates of a CPU against each other: milliseconds of CPU time for one step.

    OMP_NUM_THREADS=1 python -m tests.bench.adam

30M fp32 parameters in 40 tensors, steps alternating within a round, median of 7 rounds. A step
reads weights, gradients and two moments and writes all but the gradients: 28 bytes a parameter.
"""

from __future__ import annotations

import statistics
import time

import torch

from roots.config import parse_config
from roots.device import Device
from roots.training.engine.optimizer import choose_optimizer

TENSORS, SIZE, ROUNDS = 40, 750_000, 7
BYTES = 28 * TENSORS * SIZE


def main() -> None:
    """Measure and print."""
    steps = {name: _stepper(name) for name in ("torch", "deepspeed")}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, optimizer in steps.items():
            start = time.process_time()
            optimizer.step()
            seconds[name].append(time.process_time() - start)
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:10} {1e3 * median:7.1f} ms  {BYTES / median / 1e9:5.1f} GB/s")


def _stepper(implementation: str) -> torch.optim.Optimizer:
    config = parse_config({"optimizer": {"implementation": implementation}})
    parameters = [torch.nn.Parameter(torch.randn(SIZE)) for _ in range(TENSORS)]
    for parameter in parameters:
        parameter.grad = torch.randn(SIZE)
    factory = choose_optimizer(config, Device("cpu", 0))
    return factory([{"params": parameters, "weight_decay": 0.1}])


if __name__ == "__main__":
    main()
