"""Choose ranks, layout and precision for the quickstart on this machine.

    python launch/quickstart_layout.py NUM_GPUS

Prints the number of ranks on the first line and one config override on each further line.
With GPUs: all of them, fp16 with dynamic loss scaling. Without: two processes, and fp32 or bf16,
whichever runs a feed-forward block of the quickstart's size faster here.
"""

from __future__ import annotations

import os
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

TOKENS, HIDDEN, INNER = 2048, 256, 1024
GLOBAL_BATCH = 8
# bf16 must be worth its rounding.
REQUIRED_GAIN = 1.1
REPEATS, SECONDS_EACH = 3, 0.3


def main(num_gpus: int) -> None:
    """Print the layout."""
    ranks = num_gpus or 2
    tensor = 2 if ranks % 2 == 0 else 1
    replicas = ranks // tensor
    samples = -(-GLOBAL_BATCH // replicas)
    print(ranks)
    print(f"parallel.tensor={tensor}")
    print(f"training.micro_batch_size={samples}")
    print(f"training.global_batch_size={samples * replicas}")
    print(f"training.precision={'fp16' if num_gpus else faster_on_cpu(ranks)}")


def faster_on_cpu(ranks: int) -> str:
    """Measure both precisions with the threads that one rank will have; "fp32" or "bf16"."""
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks))
    torch.manual_seed(1)
    seconds = {"fp32": float("inf"), "bf16": float("inf")}
    for _ in range(REPEATS):
        # Alternating, so that other load on the machine meets both.
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            seconds[name] = min(seconds[name], _seconds_per_step(dtype))
    gain = seconds["fp32"] / seconds["bf16"]
    print(f"bf16 runs {gain:.2f} times as fast as fp32 here", file=sys.stderr)
    return "bf16" if gain >= REQUIRED_GAIN else "fp32"


def _seconds_per_step(dtype: torch.dtype) -> float:
    """The fastest forward and backward of a normalised feed-forward block within the time."""
    up, down = nn.Linear(HIDDEN, INNER, dtype=dtype), nn.Linear(INNER, HIDDEN, dtype=dtype)
    x_TH = torch.randn(TOKENS, HIDDEN, dtype=dtype)
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < SECONDS_EACH:
        before = time.perf_counter()
        y_TH = down(F.silu(up(F.layer_norm(x_TH, (HIDDEN,)))))
        y_TH.backward(x_TH)
        best = min(best, time.perf_counter() - before)
    return best


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: quickstart_layout.py NUM_GPUS")
    main(int(sys.argv[1]))
