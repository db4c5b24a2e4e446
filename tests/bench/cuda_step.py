"""The training step of a GPT-2-shaped decoder on one GPU: ROOTS' kernels against torch's ops.

    python -m tests.bench.cuda_step [--json FILE]

Model, loss and backward pass of ROOTS, a plain loop with torch's fused AdamW, no DeepSpeed: what
differs is the implementation of the ops alone. Sides alternate; medians of CUDA events.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch

from roots.config import parse_config
from roots.models.init import initialise
from roots.models.options import BuildOptions
from roots.parallel.mesh import Mesh
from roots.planner.flops import training_flops_per_token
from tests.bench.measure import Call, Clock, alternate, ratio
from tests.helpers.decoders import build_decoder

SIDES = ("roots", "torch")


def step_of(side: str, precision: str) -> tuple[Call, int, int]:
    """Return (one training step, its tokens, FLOPs of a token)."""
    model = {
        "num_layers": 12,
        "hidden_size": 2048,
        "num_heads": 16,
        "sequence_length": 2048,
        "vocab_size": 50257,
        "activation": "gelu_tanh",
    }
    config = parse_config({"model": model, "training": {"precision": precision}, "ops": _ops(side)})
    decoder = build_decoder(config.model, Mesh.single(), options=BuildOptions.of_run(config))
    initialise(decoder, 1, config.model, device="cuda")
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-4, fused=True)
    rows, length = 4, config.model.sequence_length
    tokens_BT = torch.randint(config.model.vocab_size, (rows, length), device="cuda")
    starts_BT = torch.zeros_like(tokens_BT)
    weights_BT = torch.full(tokens_BT.shape, 1.0 / length, device="cuda")
    labels_BT = tokens_BT.roll(-1, dims=1)

    def step() -> None:
        loss = decoder(tokens_BT, starts_BT, starts_BT[:, 0], labels_BT, weights_BT)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, tokens_BT.numel(), training_flops_per_token(config.model)


def _ops(side: str) -> dict[str, str]:
    from roots.config.data import OpsConfig

    if side == "roots":
        return {}
    return {**dict.fromkeys(OpsConfig.model_fields, "torch"), "attention": "torch_sdpa"}


def compare(precision: str, rounds: int) -> dict[str, object]:
    """Alternate the sides and print one line."""
    steps = {side: step_of(side, precision) for side in SIDES}
    _, tokens, flops = steps["roots"]
    samples = alternate(Clock("cuda"), {side: step[0] for side, step in steps.items()}, rounds)
    seconds = {side: statistics.median(values) for side, values in samples.items()}
    found = ratio(samples["torch"], samples["roots"])
    rate = tokens * flops / seconds["roots"] / 1e12
    print(f"step {precision}: {seconds}, roots {found:.3f}x torch, {rate:.0f} TFLOP/s", flush=True)
    return {"precision": precision, "seconds": seconds, "ratio": found, "tflops": rate}


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = [compare(precision, args.rounds) for precision in ("bf16", "fp16")]
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
