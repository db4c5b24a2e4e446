"""The table of layouts: each legal combination of axes against one process, ten steps in fp32.

    OMP_NUM_THREADS=1 python -m tests.parallel.table [--cover N | --full] [--only TEXT] [--json F]

Few combinations that together have every N choices that any legal one has: pairs, which CI runs,
unless said. With --full all, for hours. The report goes to the terminal and, as JSON, to file F;
tests/bench/results/layouts.json is such a report.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from roots.files import write_atomically
from roots.verify.compare import Comparison, Curve, compare
from roots.verify.proof import TOLERANCE
from tests.helpers.distributed import run_distributed
from tests.helpers.runs import write_dataset
from tests.parallel.combinations import (
    AXES,
    MODELS,
    Combination,
    config_of,
    covering,
    legal,
    reference_of,
)
from tests.parallel.layouts import train_curve


@dataclass(frozen=True)
class Row:
    """What one combination gave; the largest relative differences of all steps and ranks."""

    model: str
    ranks: int
    parallel: dict[str, Any]
    loss: float
    gradient_norm: float
    gradient: float
    weight: float
    equal: bool
    first_difference: str
    seconds: float


def reference_curve(prefix: Path, model: str) -> Curve:
    """One process, without any parallelism."""
    (curve,) = run_distributed(train_curve, 1, reference_of(prefix, model))
    return curve


def compare_row(prefix: Path, row: Combination, reference: Curve) -> Comparison:
    """Train `row` with real processes of its own and compare every step of every rank.

    Of its own, because torch names groups by how many a process has made: after one layout with a
    pipeline ranks disagree about the names of the next, and wait for each other for ever.
    """
    config = config_of(prefix, row.model, row.parallel)
    curves = run_distributed(train_curve, row.ranks, config, timeout_seconds=600)
    return compare(reference, curves, TOLERANCE)


def run(
    prefix: Path, rows: Sequence[Combination], report: Callable[[Sequence[Row]], None]
) -> list[Row]:
    """Run all rows, print each and report those so far; one that fails counts as different."""
    print(f"{len(rows)} combinations; largest relative differences over ten steps and all ranks")
    print("    loss      norm  gradient    weight  seconds  combination", flush=True)
    references = {model: reference_curve(prefix, model) for model in {row.model for row in rows}}
    done = []
    for row in rows:
        done.append(_measured(prefix, row, references[row.model]))
        print(_line(done[-1], row), flush=True)
        report(done)
    return done


def _measured(prefix: Path, row: Combination, reference: Curve) -> Row:
    started = time.monotonic()
    try:
        comparison = compare_row(prefix, row, reference)
    except AssertionError as error:
        return _failed(row, error, time.monotonic() - started)
    return _row(row, comparison, time.monotonic() - started)


def _row(row: Combination, comparison: Comparison, seconds: float) -> Row:
    kinds = ("loss", "gradient norm", "gradient", "weight")
    worst = [comparison.worst(kind).relative for kind in kinds]
    first = "" if comparison.first is None else comparison.first.describe()
    parallel = row.parallel
    return Row(row.model, row.ranks, parallel, *worst, comparison.equal, first, round(seconds, 1))


def _failed(row: Combination, error: AssertionError, seconds: float) -> Row:
    said = str(error).strip().splitlines()[-1]
    worst = [float("inf")] * 4
    return Row(row.model, row.ranks, row.parallel, *worst, False, said, round(seconds, 1))


def _line(result: Row, row: Combination) -> str:
    numbers = (result.loss, result.gradient_norm, result.gradient, result.weight)
    cells = "  ".join(f"{number:8.1e}" for number in numbers)
    note = "" if result.equal else f"  DIFFERENT: {result.first_difference}"
    return f"{cells}  {result.seconds:7.1f}  {row.name}{note}"


def main() -> None:
    """Run, print, write; exit code 1 if a combination differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--full", action="store_true", help="every legal combination")
    chosen.add_argument("--cover", type=int, default=2, help="how many choices to see together")
    parser.add_argument("--only", default="", help="only combinations whose name has this text")
    parser.add_argument("--json", type=Path, help="file for the report")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prefix = write_dataset(Path(folder) / "data")
        rows = legal(prefix)
        total = len(rows)
        if not arguments.full:
            rows = sorted(covering(rows, arguments.cover), key=lambda row: row.ranks)
        started = time.monotonic()
        chosen_rows = [row for row in rows if arguments.only in row.name]
        done = run(prefix, chosen_rows, lambda done: _write(arguments.json, done, total))
    minutes = (time.monotonic() - started) / 60
    different = sum(not row.equal for row in done)
    print(
        f"{len(done)} of {total} legal combinations in {minutes:.1f} minutes: "
        f"{len(done) - different} equal to one process within {TOLERANCE:g}, {different} different"
    )
    sys.exit(1 if different else 0)


def _write(path: Path | None, done: Sequence[Row], total: int) -> None:
    """The report of the rows so far, so that a run of hours that is ended leaves what it found."""
    if path is not None:
        write_atomically(path, json.dumps(_report(done, total), indent=1) + "\n")


def _report(done: Sequence[Row], total: int) -> dict[str, Any]:
    packages = ("torch", "deepspeed")
    return {
        "command": " ".join(["python", "-m", "tests.parallel.table", *sys.argv[1:]]),
        "machine": {
            "cores": os.cpu_count(),
            "system": platform.platform(),
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "tolerance": TOLERANCE,
        "axes": {name: list(values) for name, values in AXES.items()},
        "models": MODELS,
        "legal": total,
        "equal": sum(row.equal for row in done),
        "rows": [asdict(row) for row in done],
    }


if __name__ == "__main__":
    main()
