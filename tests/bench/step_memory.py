"""Peak memory of one side's training step, in a process of its own: model, optimizer, activations.

    OMP_NUM_THREADS=1 python -m tests.bench.step_memory SIDE SHAPE PRECISION

Prints the growth in bytes: the largest resident size after three steps less the resident size
before the model was built, when all libraries were loaded. tests.bench.step asks this of each side.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from pathlib import Path

import torch

from roots.device import Device, launch_environment, memory_bytes
from roots.parallel import process
from roots.training.assemble import start_process
from tests.bench.step_sides import SHAPES, SIDES, Precision, Shape, make_step, random_tokens

STEPS = 3


def peak_of(side: str, shape: Shape, precision: Precision) -> int:
    """Ask a new process for the growth of `side`, in bytes."""
    words = [sys.executable, "-m", "tests.bench.step_memory", side, shape, precision]
    answer = subprocess.run(words, check=True, capture_output=True, text=True)
    return int(answer.stdout.split()[-1])


def growth(side: str, shape: Shape, precision: Precision, device: Device) -> int:
    """Bytes that `side` adds to this process."""
    if side == "transformers":
        import transformers

        assert transformers.GPT2LMHeadModel
        assert transformers.LlamaForCausalLM
    tokens_BT = random_tokens(shape)
    before = _resident_bytes()
    step = make_step(side, shape, precision, device)
    for _ in range(STEPS):
        step(tokens_BT)
    return memory_bytes(device) - before


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize()


def main() -> None:
    """Measure the side named on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("precision", choices=["fp32", "bf16"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    environment = launch_environment()
    device = start_process(environment, environment.local_rank)
    process.initialise(environment, device)
    print(growth(arguments.side, arguments.shape, arguments.precision, device))
    process.shutdown()


if __name__ == "__main__":
    main()
