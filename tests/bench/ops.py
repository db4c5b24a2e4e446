"""Every op against torch's own: same inputs, alternating, medians, and the share of the limit.

    OMP_NUM_THREADS=1 python -m tests.bench.ops --device cpu [--op layer_norm] [--dtype bfloat16]
                                                [--rounds 15] [--json FILE]

The limit is the larger of bytes over the measured copy bandwidth and FLOPs over the measured rate
of a matrix product. What cross-entropy needs of memory: tests/bench/memory.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from tests.bench.attention_cases import attention
from tests.bench.cases import CASES, Bench, Case
from tests.bench.measure import (
    Clock,
    Limits,
    alternate,
    describe_machine,
    keep_freed_memory,
    measure_limits,
    ratio,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MAKERS = {"attention": attention, **CASES}


@dataclass(frozen=True)
class Result:
    """Medians in microseconds; `ratio` is torch / ours; shares are limit / time."""

    op: str
    shape: str
    dtype: str
    passes: str
    ours_us: float
    torch_us: float
    ratio: float
    ours_share: float
    torch_share: float
    gbytes_per_second: float
    tflops: float


def measure(case: Case, clock: Clock, limits: Limits, rounds: int) -> Result:
    """Time one case."""
    samples = alternate(clock, {"ours": case.ours, "torch": case.torch}, rounds)
    ours, theirs = (statistics.median(samples[name]) for name in ("ours", "torch"))
    least = limits.seconds(case.bytes, case.flops, case.dtype)
    return Result(
        op=case.op,
        shape=case.shape,
        dtype=str(case.dtype).removeprefix("torch."),
        passes=case.passes,
        ours_us=1e6 * ours,
        torch_us=1e6 * theirs,
        ratio=ratio(samples["torch"], samples["ours"]),
        ours_share=least / ours,
        torch_share=least / theirs,
        gbytes_per_second=case.bytes / ours / 1e9,
        tflops=case.flops / ours / 1e12,
    )


def show(result: Result) -> None:
    """One line."""
    print(
        f"{result.op:22} {result.dtype:9} {result.passes:17} {result.ours_us:10.1f} us "
        f"{result.ratio:6.2f}x torch  {result.ours_share:5.0%} of limit "
        f"(torch {result.torch_share:4.0%})  {result.tflops:6.2f} TFLOP/s "
        f"{result.gbytes_per_second:7.1f} GB/s  {result.shape}",
        flush=True,
    )


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--op", action="append", choices=sorted(MAKERS))
    parser.add_argument("--dtype", action="append", choices=sorted(DTYPES))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")
    parser.add_argument("--json", type=Path, help="file for the figures")
    return parser.parse_args()


def main() -> None:
    """Measure, print, and write JSON if asked."""
    args = arguments()
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    clock = Clock(args.device)
    dtypes = [DTYPES[name] for name in args.dtype or ("float32", "bfloat16")]
    limits = measure_limits(clock, dtypes)
    print(f"copy {limits.copy_bytes_per_second / 1e9:.1f} GB/s, products {limits.flops_per_second}")
    results = []
    for name in args.op or MAKERS:
        for dtype in dtypes:
            for case in MAKERS[name](Bench(args.device, dtype)):
                results.append(measure(case, clock, limits, args.rounds))
                show(results[-1])
    if args.json is not None:
        report = {
            "command": " ".join(["python", "-m", "tests.bench.ops", *sys.argv[1:]]),
            "machine": describe_machine(args.device),
            "limits": asdict(limits),
            "results": [asdict(result) for result in results],
        }
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
