"""The peak memory of cross-entropy forward and backward, beside its logits: ROOTS against torch.

    python -m tests.bench.memory [--device cpu] [--json FILE]

On a CPU each side runs in a process of its own, whose largest resident size is read before and
after; on a GPU the allocator tells.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from roots import ops
from roots.device import Device, memory_bytes
from tests.bench.measure import describe_machine

ROWS, VOCABULARY = 4096, 32768
SIDES = ("roots", "torch")


def peak_bytes(side: str, dtype_name: str, device: str) -> int:
    """Bytes that one forward and backward needs beyond its operands."""
    dtype = getattr(torch, dtype_name)
    labels = torch.randint(VOCABULARY, (ROWS,), device=device)
    # A small call first: libraries, thread pools and the allocator's own needs are in place.
    _step(side, _normal(8, dtype, device), labels[:8])
    logits = _normal(ROWS, dtype, device)
    before = _peak(device, reset=True)
    _step(side, logits, labels)
    return _peak(device) - before


def _normal(rows: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """Drawn in place, so that nothing larger than the logits was ever held."""
    logits = torch.empty(rows, VOCABULARY, dtype=dtype, device=device)
    return logits.normal_().requires_grad_()


def _step(side: str, logits: torch.Tensor, labels: torch.Tensor) -> None:
    if side == "roots":
        loss = ops.cross_entropy(logits, labels).mean()
    else:
        loss = F.cross_entropy(logits, labels)
    torch.autograd.grad(loss, logits)


def _peak(device: str, reset: bool = False) -> int:
    if reset and device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    return memory_bytes(Device(device, 0))


def compare(dtype_name: str, device: str) -> dict[str, object]:
    """Bytes of both sides and their quotient."""
    context = multiprocessing.get_context("spawn")
    found = {}
    for side in SIDES:
        with context.Pool(1) as pool:
            found[side] = pool.apply(peak_bytes, (side, dtype_name, device))
    quotient = found["roots"] / found["torch"]
    print(
        f"cross_entropy {dtype_name} {ROWS} x {VOCABULARY}: roots {found['roots'] >> 20} MiB, "
        f"torch {found['torch'] >> 20} MiB, {quotient:.2f}x"
    )
    return {"op": "cross_entropy", "dtype": dtype_name, **found, "quotient": quotient}


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = [compare(name, args.device) for name in ("float32", "bfloat16")]
    if args.json is not None:
        report = {
            "command": " ".join(["python", "-m", "tests.bench.memory", *sys.argv[1:]]),
            "machine": describe_machine(args.device),
            "results": results,
        }
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
