"""The training step of ROOTS against others: speed, memory, tensor parallelism, DeepSpeed's share.

    OMP_NUM_THREADS=1 python -m tests.bench.step [--json FILE] [--part speed] [--shape gpt2]
        [--precision fp32] [--against transformers] [--rounds 5] [--steps 2]

All train the same architecture (tests/bench/step_sides.py) on the same tokens with AdamW and
clipping at 1.0:
 - roots: ROOTS through its engine, the decoder under DeepSpeed ZeRO-1, as `roots train` does;
 - torch_ops: the same with every op by torch instead of ROOTS' kernels;
 - bare: ROOTS' decoder without an engine, in a plain loop with torch's fused AdamW;
 - transformers: its model of that shape in the same plain loop, bf16 by torch.autocast.

speed:  The sides alternate within a round, so that a neighbour's load falls on all, and each step
        is charged its CPU time (time.process_time). A ratio is the median over rounds of roots by
        the other. MFU is against the best matrix product of the same rounds, per CPU-second too.
        DeepSpeed's share of the step is 1 - (bare's seconds / roots' seconds), median over rounds.
memory: growth of each side's own process, over its libraries.
tensor: TP2 on two one-thread processes against one, by the clock; needs two idle cores.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from roots.device import Device, device_name, launch_environment
from roots.models.options import compute_dtype
from roots.parallel import process
from roots.planner.flops import MFU_FORMULA, mfu, training_flops_per_token
from roots.training.assemble import start_process
from tests.bench import step_memory, step_tensor
from tests.bench.step_sides import (
    SHAPES,
    SIDES,
    Precision,
    Shape,
    make_step,
    random_tokens,
    run_config,
)

WARMUP_STEPS = 2
PRODUCT_SIZE = 2048
PARTS = ("speed", "memory", "tensor")
# What every figure should reach: at least, or at most.
SPEED_TARGETS = {"fp32": 1.15, "bf16": 1.4}
SHARE_TARGET, MEMORY_TARGET, TENSOR_TARGET = 0.10, 0.7, 1.7


@dataclass(frozen=True)
class Speed:
    """What one shape and precision gave; rates in tokens per CPU-second, one entry a round."""

    shape: Shape
    precision: Precision
    rates: dict[str, list[float]]
    ratios: dict[str, float]
    engine_share: float | None
    mfu: dict[str, float]
    peak_flops_per_cpu_second: float
    first_losses: dict[str, float]
    last_losses: dict[str, float]


@dataclass(frozen=True)
class Memory:
    """Growth of each side in bytes, and that of roots as a share of that of transformers."""

    shape: Shape
    precision: Precision
    peak_bytes: dict[str, int]
    ratio: float


@dataclass(frozen=True)
class Tensor2:
    """Tokens per second of the clock, one entry a round."""

    shape: Shape
    precision: Precision
    rates: dict[str, list[float]]
    ratio: float


def compare_speed(
    shape: Shape, precision: Precision, against: list[str], device: Device, options: Any
) -> Speed:
    """Alternate the sides for `options.rounds` of `options.steps` steps each."""
    sides = {name: make_step(name, shape, precision, device) for name in ["roots", *against]}
    tokens_BT = random_tokens(shape)
    first: dict[str, float] = {}
    for _ in range(WARMUP_STEPS):
        for name, step in sides.items():
            first.setdefault(name, step(tokens_BT))
    last = dict(first)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    peak = 0.0
    for number in range(options.rounds):
        for name, step in sides.items():
            started = time.process_time()
            for _ in range(options.steps):
                last[name] = step(tokens_BT)
            seconds = time.process_time() - started
            rates[name].append(options.steps * tokens_BT.numel() / seconds)
        peak = max(peak, product_flops_per_cpu_second(precision))
        shown = ", ".join(f"{name} {values[-1]:.1f}" for name, values in rates.items())
        print(f"{shape} {precision} round {number + 1}: {shown} tokens per CPU-second", flush=True)
    flops = training_flops_per_token(run_config(shape, precision).model)
    share = 1 - _ratio(rates["roots"], rates["bare"]) if "bare" in rates else None
    return Speed(
        shape=shape,
        precision=precision,
        rates=rates,
        ratios={name: _ratio(rates["roots"], rates[name]) for name in against},
        engine_share=share,
        mfu={name: mfu(statistics.median(rates[name]), flops, peak) for name in sides},
        peak_flops_per_cpu_second=peak,
        first_losses=first,
        last_losses=last,
    )


def compare_memory(shape: Shape, precision: Precision, against: list[str]) -> Memory:
    """Each side in its own process."""
    peaks = {side: step_memory.peak_of(side, shape, precision) for side in ["roots", *against]}
    ratio = peaks["roots"] / peaks["transformers"] if "transformers" in peaks else float("nan")
    return Memory(shape, precision, peaks, ratio)


def compare_tensor(shape: Shape, precision: Precision, options: Any) -> Tensor2:
    """TP2 against one process."""
    rates = step_tensor.rates(shape, precision, options.rounds, options.steps)
    return Tensor2(shape, precision, rates, _ratio(rates["tp2"], rates["one"]))


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def product_flops_per_cpu_second(precision: Precision) -> float:
    """The best of a few products of two square matrices in the compute dtype."""
    left, right = torch.randn(2, PRODUCT_SIZE, PRODUCT_SIZE).to(compute_dtype(precision))
    seconds = []
    for _ in range(5):
        started = time.process_time()
        torch.nn.functional.linear(left, right)
        seconds.append(time.process_time() - started)
    return 2 * PRODUCT_SIZE**3 / min(seconds)


def describe_machine() -> dict[str, Any]:
    """Where the figures come from."""
    packages = ("torch", "deepspeed", "transformers")
    return {
        "processor": device_name(Device("cpu", 0)),
        "cores": os.cpu_count(),
        "threads_used": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def show(result: Speed | Memory | Tensor2) -> str:
    """One line: what was found, and whether it reaches its target."""
    head = f"{result.shape} {result.precision}"
    if isinstance(result, Memory):
        sizes = ", ".join(f"{side} {size / 1e6:.0f} MB" for side, size in result.peak_bytes.items())
        return f"{head} memory: {sizes}; {_judged(result.ratio, at_most=MEMORY_TARGET)}"
    if isinstance(result, Tensor2):
        return f"{head} TP2 by the clock: {_judged(result.ratio, at_least=TENSOR_TARGET)}"
    parts = []
    for name, value in result.ratios.items():
        target = SPEED_TARGETS[result.precision] if name == "transformers" else None
        parts.append(f"{_judged(value, at_least=target)} of {name}")
    if result.engine_share is not None:
        parts.append(f"DeepSpeed's share {_judged(result.engine_share, at_most=SHARE_TARGET)}")
    shares = ", ".join(f"{name} {value:.1%}" for name, value in result.mfu.items())
    peak = f"{result.peak_flops_per_cpu_second / 1e9:.0f} GFLOP per CPU-second"
    return f"{head} speed: {', '.join(parts)}; MFU {shares} of {peak}"


def _judged(value: float, *, at_least: float | None = None, at_most: float | None = None) -> str:
    """The figure with its target, where it has one."""
    if at_least is not None:
        verdict = f" ({'reaches' if value >= at_least else 'MISSES'} at least {at_least:g})"
    elif at_most is not None:
        verdict = f" ({'reaches' if value <= at_most else 'MISSES'} at most {at_most:g})"
    else:
        verdict = ""
    return f"{value:.3f}{verdict}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", action="append", choices=PARTS)
    parser.add_argument("--shape", action="append", choices=SHAPES)
    parser.add_argument("--precision", action="append", choices=["fp32", "bf16"])
    parser.add_argument("--against", action="append", choices=SIDES[1:])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="steps of each side in a round")
    parser.add_argument("--json", type=Path, help="file for the figures")
    return parser.parse_args()


def main() -> None:
    """Measure, print, and write JSON if asked."""
    options = _arguments()
    torch.set_num_threads(1)
    environment = launch_environment()
    device = start_process(environment, environment.local_rank)
    assert device.kind == "cpu", "CPU time is the measure; hide the GPUs (CUDA_VISIBLE_DEVICES=)"
    process.initialise(environment, device)
    against = options.against or list(SIDES[1:])
    measure: dict[str, Callable[[Shape, Precision], Speed | Memory | Tensor2]] = {
        "speed": lambda shape, kind: compare_speed(shape, kind, against, device, options),
        "memory": lambda shape, kind: compare_memory(shape, kind, against),
        "tensor": lambda shape, kind: compare_tensor(shape, kind, options),
    }
    found: dict[str, list[Speed | Memory | Tensor2]] = {part: [] for part in options.part or PARTS}
    for part, results in found.items():
        for shape in options.shape or SHAPES:
            for precision in options.precision or ("fp32", "bf16"):
                results.append(measure[part](shape, precision))
                print(show(results[-1]), flush=True)
    process.shutdown()
    print(MFU_FORMULA)
    if options.json is not None:
        report = {
            "command": " ".join(["python", "-m", "tests.bench.step", *sys.argv[1:]]),
            "machine": describe_machine(),
            **{part: [asdict(result) for result in results] for part, results in found.items()},
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
