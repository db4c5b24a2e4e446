"""The training step of ROOTS against others, in tokens per CPU-second of one thread.

    OMP_NUM_THREADS=1 python -m tests.bench.step [--json FILE] [--precision fp32] [--rounds 5]

All train the same architecture on the same tokens with AdamW and clipping at 1.0:
 - roots: ROOTS through its engine, the decoder under DeepSpeed ZeRO, as `roots train` does;
 - torch_ops: the same with every op by torch instead of ROOTS' kernels;
 - transformers: its GPT-2 in a plain PyTorch loop with torch's fused AdamW, bf16 by torch.autocast.
The sides alternate within a round, so that a neighbour's load falls on all, and each step is
charged its CPU time (time.process_time). A ratio is the median over rounds of roots / the other.
MFU is against the best matrix product of the same rounds, per CPU-second as well.
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
from roots.config.data import OpsConfig
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
    rates: dict[str, list[float]]
    ratios: dict[str, float]
    mfu: dict[str, float]
    peak_flops_per_cpu_second: float
    first_losses: dict[str, float]
    last_losses: dict[str, float]


def run_config(precision: Precision, *, torch_ops: bool = False) -> RunConfig:
    """The run that ROOTS trains: defaults, but for the architecture and one batch a step."""
    ops = dict.fromkeys(OpsConfig.model_fields, "torch") if torch_ops else {}
    if torch_ops:
        ops["attention"] = "torch_sdpa"
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
    return parse_config({"model": model, "training": training, "ops": ops})


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


def make_sides(precision: Precision, names: list[str], device: Device) -> dict[str, Step]:
    """The step of each side by its name."""
    makers: dict[str, Callable[[], Step]] = {
        "roots": lambda: roots_step(run_config(precision), device),
        "torch_ops": lambda: roots_step(run_config(precision, torch_ops=True), device),
        "transformers": lambda: transformers_step(precision),
    }
    return {name: makers[name]() for name in ["roots", *names]}


def compare(
    precision: Precision, against: list[str], device: Device, rounds: int, steps: int
) -> Comparison:
    """Alternate the sides for `rounds` of `steps` steps each."""
    sides = make_sides(precision, against, device)
    tokens_BT = torch.randint(
        VOCABULARY, (BATCH, SEQUENCE), generator=torch.Generator().manual_seed(SEED)
    )
    first = {
        name: next(step(tokens_BT) for _ in range(WARMUP_STEPS)) for name, step in sides.items()
    }
    last = dict(first)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    peak = 0.0
    for number in range(rounds):
        for name, step in sides.items():
            started = time.process_time()
            for _ in range(steps):
                last[name] = step(tokens_BT)
            rates[name].append(steps * tokens_BT.numel() / (time.process_time() - started))
        peak = max(peak, product_flops_per_cpu_second(precision))
        shown = ", ".join(f"{name} {values[-1]:.1f}" for name, values in rates.items())
        print(f"{precision} round {number + 1}: {shown} tokens per CPU-second", flush=True)
    flops = training_flops_per_token(run_config(precision).model)
    return Comparison(
        precision=precision,
        rates=rates,
        ratios={name: _ratio(rates["roots"], rates[name]) for name in against},
        mfu={name: mfu(statistics.median(rates[name]), flops, peak) for name in sides},
        peak_flops_per_cpu_second=peak,
        first_losses=first,
        last_losses=last,
    )


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


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--precision", action="append", choices=["fp32", "bf16"])
    parser.add_argument("--against", action="append", choices=["torch_ops", "transformers"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="steps of each side in a round")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    environment = launch_environment()
    device = start_process(environment, environment.local_rank)
    assert device.kind == "cpu", "CPU time is the measure; hide the GPUs (CUDA_VISIBLE_DEVICES=)"
    process.initialise(environment, device)
    against = arguments.against or ["torch_ops", "transformers"]
    results = [
        compare(precision, against, device, arguments.rounds, arguments.steps)
        for precision in arguments.precision or ["fp32", "bf16"]
    ]
    process.shutdown()
    print(MFU_FORMULA)
    for result in results:
        peak = f"{result.peak_flops_per_cpu_second / 1e9:.0f} GFLOP per CPU-second"
        ratios = ", ".join(f"{value:.3f} of {name}" for name, value in result.ratios.items())
        shares = ", ".join(f"{name} {value:.1%}" for name, value in result.mfu.items())
        print(f"{result.precision}: roots {ratios}; MFU {shares} of {peak}")
    if arguments.json is not None:
        report = {
            "command": " ".join(["python", "-m", "tests.bench.step", *sys.argv[1:]]),
            "machine": describe_machine(),
            "results": [asdict(result) for result in results],
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
