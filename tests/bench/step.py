"""The training step of ROOTS against transformers' GPT-2, in tokens per CPU-second of one thread.

    OMP_NUM_THREADS=1 python -m tests.bench.step [--json FILE] [--precision fp32] [--rounds 5]

Both train the same architecture on the same tokens with AdamW and clipping at 1.0:
 - ROOTS through its engine, the decoder under DeepSpeed ZeRO, as `roots train` does;
 - transformers in a plain PyTorch loop with torch's fused AdamW, bf16 by torch.autocast.
The sides alternate within a round, so that a neighbour's load falls on both, and each step is
charged its CPU time (time.process_time). The ratio is the median over rounds of ROOTS /
transformers. MFU is against the best matrix product of the same rounds, per CPU-second as well.
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
from typing import Any, Literal

import torch
from torch import Tensor

from roots.config import RunConfig, parse_config
from roots.data.batch import Batch
from roots.device import Device, device_name, launch_environment
from roots.models.options import compute_dtype
from roots.parallel import process
from roots.parallel.mesh import Mesh
from roots.planner.flops import MFU_FORMULA, mfu, training_flops_per_token
from roots.training.assemble import build_engine, start_process

LAYERS, WIDTH, HEADS, SEQUENCE, BATCH, VOCABULARY = 6, 384, 6, 256, 8, 50257
LEARNING_RATE = 3e-4
CLIPPING = 1.0
SEED = 1
WARMUP_STEPS = 2
PRODUCT_SIZE = 2048

Step = Callable[[Tensor], float]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Comparison:
    """What one precision gave; rates in tokens per CPU-second, one entry a round."""

    precision: Precision
    roots: list[float]
    transformers: list[float]
    ratio: float
    roots_mfu: float
    transformers_mfu: float
    peak_flops_per_cpu_second: float
    first_losses: tuple[float, float]
    last_losses: tuple[float, float]


def run_config(precision: Precision) -> RunConfig:
    """The run that ROOTS trains: defaults, but for the architecture and one batch a step."""
    model = {
        "num_layers": LAYERS,
        "hidden_size": WIDTH,
        "num_heads": HEADS,
        "sequence_length": SEQUENCE,
        "vocab_size": VOCABULARY,
        "activation": "gelu_tanh",
    }
    training = {
        "precision": precision,
        "micro_batch_size": BATCH,
        "global_batch_size": BATCH,
        "gradient_clipping": CLIPPING,
        "seed": SEED,
    }
    return parse_config({"model": model, "training": training})


def roots_step(config: RunConfig, device: Device) -> Step:
    """What `roots train` does with one global batch, on this process."""
    engine = build_engine(config, config.plan_batch(1), Mesh.single(), device)

    def step(tokens_BT: Tensor) -> float:
        zeros_BT = torch.zeros_like(tokens_BT)
        batch = Batch(
            tokens_BT=tokens_BT,
            labels_BT=tokens_BT.roll(-1, dims=1),
            loss_weights_BT=torch.full(tokens_BT.shape, 1.0 / SEQUENCE),
            document_starts_BT=zeros_BT,
            dropout_keys_B=zeros_BT[:, 0],
        )
        return engine.train_step([batch], LEARNING_RATE).loss

    return step


def transformers_step(precision: Precision) -> Step:
    """The loop that a user of transformers writes."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(SEED)
    config = GPT2Config(
        n_layer=LAYERS,
        n_embd=WIDTH,
        n_head=HEADS,
        n_positions=SEQUENCE,
        vocab_size=VOCABULARY,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model = GPT2LMHeadModel(config).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )

    def step(tokens_BT: Tensor) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(tokens_BT, labels=tokens_BT).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIPPING)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def compare(precision: Precision, device: Device, rounds: int, steps: int) -> Comparison:
    """Alternate the two sides for `rounds` of `steps` steps each."""
    config = run_config(precision)
    sides = (roots_step(config, device), transformers_step(precision))
    tokens_BT = torch.randint(
        VOCABULARY, (BATCH, SEQUENCE), generator=torch.Generator().manual_seed(SEED)
    )
    warmup = [[step(tokens_BT) for _ in range(WARMUP_STEPS)] for step in sides]
    peak = 0.0
    rates: tuple[list[float], list[float]] = ([], [])
    last = [0.0, 0.0]
    for number in range(rounds):
        for side, step in enumerate(sides):
            started = time.process_time()
            for _ in range(steps):
                last[side] = step(tokens_BT)
            rates[side].append(steps * tokens_BT.numel() / (time.process_time() - started))
        peak = max(peak, product_flops_per_cpu_second(precision))
        ours, theirs = rates[0][-1], rates[1][-1]
        print(
            f"{precision} round {number + 1}: roots {ours:6.1f}, transformers {theirs:6.1f} "
            f"tokens per CPU-second, ratio {ours / theirs:.3f}",
            flush=True,
        )
    flops = training_flops_per_token(config.model)
    return Comparison(
        precision=precision,
        roots=rates[0],
        transformers=rates[1],
        ratio=statistics.median(ours / theirs for ours, theirs in zip(*rates, strict=True)),
        roots_mfu=mfu(statistics.median(rates[0]), flops, peak),
        transformers_mfu=mfu(statistics.median(rates[1]), flops, peak),
        peak_flops_per_cpu_second=peak,
        first_losses=(warmup[0][0], warmup[1][0]),
        last_losses=(last[0], last[1]),
    )


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


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--precision", action="append", choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="steps of each side in a round")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    environment = launch_environment()
    device = start_process(environment, environment.local_rank)
    assert device.kind == "cpu", "CPU time is the measure; hide the GPUs (CUDA_VISIBLE_DEVICES=)"
    process.initialise(environment, device)
    results = [
        compare(precision, device, arguments.rounds, arguments.steps)
        for precision in arguments.precision or ["fp32", "bf16"]
    ]
    process.shutdown()
    print(MFU_FORMULA)
    for result in results:
        peak = f"{result.peak_flops_per_cpu_second / 1e9:.0f} GFLOP per CPU-second"
        shares = f"{result.roots_mfu:.1%} against {result.transformers_mfu:.1%} of {peak}"
        print(f"{result.precision}: ratio {result.ratio:.3f}, MFU {shares}")
    if arguments.json is not None:
        report = {
            "command": " ".join(["python", "-m", "tests.bench.step", *sys.argv[1:]]),
            "machine": describe_machine(),
            "results": [asdict(result) for result in results],
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
