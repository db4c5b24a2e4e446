"""The two ops of generation on a CPU against torch's, and against a plain read of the weights.

    OMP_NUM_THREADS=1 python -m tests.bench.few_rows [--rounds 9] [--json FILE]

Shapes are those of GPT-2 125M, as many copies of each weight as no cache holds. Weights and caches
of ROOTS lie in huge pages, where generation puts them; torch's product is measured on weights as
torch allocates them, and the plain read on both. int8 is compared with torch's product in fp32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from roots.ops import (
    attention_rows,
    empty_in_huge_pages,
    linear_few_rows,
    move_to_huge_pages,
    quantise_rows,
)
from tests.bench.measure import Call, Clock, alternate, describe_machine, ratio

SHAPES = ((768, 2304), (768, 768), (768, 3072), (3072, 768), (768, 50257))
KINDS = ("fp32", "bf16", "int8")
ROWS = (1, 8)
_BYTES_OF_WEIGHTS = 128 << 20
_LENGTH, _HEADS, _HEAD_SIZE, _LAYERS = 192, 12, 64, 12


@dataclass(frozen=True)
class Result:
    """Medians of a call, in microseconds; `ratio` is torch / ours; share: of the plain read."""

    op: str
    shape: str
    kind: str
    rows: int
    ours_us: float
    torch_us: float
    ratio: float
    gbytes_per_second: float
    read_gbytes_per_second: float
    share: float


def measure_linear(clock: Clock, rounds: int, kind: str, rows: int) -> Iterator[Result]:
    """Every shape of one kind of weight and one number of rows."""
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    for inputs, outputs in SHAPES:
        size = inputs * outputs * dtype.itemsize
        plain = [
            torch.randn(outputs, inputs).to(dtype) for _ in range(max(1, _BYTES_OF_WEIGHTS // size))
        ]
        x = torch.randn(rows, inputs).to(dtype)
        ours = [quantise_rows(each) if kind == "int8" else (each.clone(), None) for each in plain]
        move_to_huge_pages([weight for weight, _ in ours])
        held = [weight for weight, _ in ours]
        sides: dict[str, Call] = {
            "ours": lambda ours=ours, x=x: [linear_few_rows(x, w, None, s) for w, s in ours],
            "torch": lambda plain=plain, x=x: [F.linear(x, w) for w in plain],
            "read": lambda held=held: [read(each) for each in held],
        }
        yield result(
            f"linear_few_rows {inputs} -> {outputs}", kind, rows, alternate(clock, sides, rounds),
            len(plain), sum(each.nbytes for each in held),
        )  # fmt: skip


def measure_attention(clock: Clock, rounds: int, kind: str, rows: int) -> Result:
    """One token of each row, through all layers of a model."""
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    shape = (_LENGTH, _HEADS, _HEAD_SIZE)
    layers = [
        [empty_in_huge_pages(shape, dtype).normal_() for _ in range(2 * rows)]
        for _ in range(_LAYERS)
    ]
    q = torch.randn(rows, _HEADS, _HEAD_SIZE).to(dtype)

    def call(name: str) -> None:
        for tensors in layers:
            attention_rows(q, tensors[:rows], tensors[rows:], implementation=name)

    held = [tensor for tensors in layers for tensor in tensors]
    sides: dict[str, Call] = {
        "ours": lambda: call("roots"),
        "torch": lambda: call("torch"),
        "read": lambda: [read(each) for each in held],
    }
    samples = alternate(clock, sides, rounds)
    size = sum(tensor.nbytes for tensor in held)
    return result(f"attention_rows S {_LENGTH}", kind, rows, samples, _LAYERS, size)


def read(tensor: Tensor) -> Tensor:
    """Go over the memory of a tensor once, with little arithmetic."""
    return tensor.view(-1).view(torch.float32).amax()


def result(
    name: str, kind: str, rows: int, samples: dict[str, list[float]], calls: int, size: int
) -> Result:
    """Figures of `calls` calls in a sample that read `size` bytes."""
    op, _, shape = name.partition(" ")
    ours, theirs, plain = (statistics.median(samples[side]) for side in ("ours", "torch", "read"))
    return Result(
        op=op,
        shape=shape,
        kind=kind,
        rows=rows,
        ours_us=1e6 * ours / calls,
        torch_us=1e6 * theirs / calls,
        ratio=ratio(samples["torch"], samples["ours"]),
        gbytes_per_second=size / ours / 1e9,
        read_gbytes_per_second=size / plain / 1e9,
        share=ratio(samples["read"], samples["ours"]),
    )


def show(each: Result) -> None:
    """One line."""
    print(
        f"{each.op:16} {each.shape:14} {each.kind} M {each.rows}: {each.ours_us:9.1f} us "
        f"{each.ratio:5.2f}x torch {each.gbytes_per_second:5.1f} GB/s "
        f"({each.share:.0%} of a read at {each.read_gbytes_per_second:.1f})",
        flush=True,
    )


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clock = Clock("cpu")
    results: list[Result] = []
    for rows in ROWS:
        for kind in KINDS:
            for each in measure_linear(clock, args.rounds, kind, rows):
                results.append(each)
                show(each)
            if kind != "int8":
                results.append(measure_attention(clock, args.rounds, kind, rows))
                show(results[-1])
    if args.json is not None:
        report = {
            "command": " ".join(["python", "-m", "tests.bench.few_rows", *sys.argv[1:]]),
            "machine": describe_machine("cpu"),
            "results": [asdict(each) for each in results],
        }
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
