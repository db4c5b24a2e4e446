"""The table of layouts: rows of rows.json, each against one process in fp32 or, where it scales
the loss, in fp16.

    OMP_NUM_THREADS=1 python -m tests.parallel.table [--cover N | --full] [--only TEXT] [--json F]

With --cover or --full three plain models instead, on few layouts that together have every N
choices that any legal one has, or on all, for hours. The report goes to the terminal and, as JSON,
to file F.
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from roots.config import RunConfig
from roots.files import write_atomically
from roots.verify.compare import Comparison, Curve, compare
from roots.verify.proof import TOLERANCE
from tests.helpers.distributed import run_distributed
from tests.parallel.combinations import AXES, Layout, covering
from tests.parallel.covering import (
    config_of,
    legal_layouts,
    read_rows,
    reference_of,
    refusal,
    required,
)
from tests.parallel.datasets import write_datasets
from tests.parallel.layouts import overflow_at_first, train_curve

# Eight units in the last place of fp16.
HALF_TOLERANCE = 8 * 2.0**-10
_PLAIN = {
    "model.num_kv_heads": 4,
    "model.dropout": 0.1,
    "model.position": "rotary",
    "model.norm": "rms_norm",
    "model.activation": "swiglu",
}
MODELS: dict[str, dict[str, Any]] = {
    "decoder": _PLAIN,
    "experts": {
        **_PLAIN,
        "model.moe.num_experts": 4,
        "model.moe.ffn_hidden_size": 16,
        "model.moe.num_shared_experts": 1,
        "model.moe.z_loss": 1e-3,
    },
    "encoder_decoder": {
        "model.architecture": "encoder_decoder",
        "model.dropout": 0.1,
        "model.position": "sinusoidal",
        "model.source_length": 24,
        # Beyond the tokens of the data: the last ids stand for hidden spans.
        "model.vocab_size": 64,
    },
}


class Case(Protocol):
    """A run on a layout: a row of rows.json, or a plain model."""

    @property
    def layout(self) -> Layout: ...

    @property
    def settings(self) -> dict[str, Any]: ...

    @property
    def name(self) -> str: ...


@dataclass(frozen=True)
class PlainCase:
    """One of MODELS on a layout."""

    model: str
    layout: Layout

    @property
    def settings(self) -> dict[str, Any]:
        """Fields by dotted name."""
        return {**required(self.layout), **MODELS[self.model]}

    @property
    def name(self) -> str:
        """Model and layout."""
        return f"{self.model},{self.layout.name}"

    @property
    def ranks(self) -> int:
        """Processes."""
        return self.layout.ranks

    def choices(self, strength: int) -> set[tuple[Any, ...]]:
        """Those of the layout, and with the model."""
        fewer = self.layout.choices(strength - 1)
        return self.layout.choices(strength) | {(self.model, *each) for each in fewer}


def plain_cases() -> Iterator[PlainCase]:
    """Every model on every layout that the config accepts for it, the small ones first."""
    for layout in legal_layouts():
        for model, settings in MODELS.items():
            if not refusal(settings, layout):
                yield PlainCase(model, layout)


@dataclass(frozen=True)
class Result:
    """What one case gave; the largest relative differences of all steps and ranks."""

    name: str
    ranks: int
    settings: dict[str, Any]
    parallel: dict[str, Any]
    loss: float
    gradient_norm: float
    gradient: float
    weight: float
    difference: str
    seconds: float

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not self.difference


@lru_cache(maxsize=64)
def reference_curve(config: RunConfig) -> Curve:
    """One process, without any parallelism."""
    (curve,) = run_distributed(train_curve, 1, config, *_tampering(config))
    return curve


def layout_curves(config: RunConfig, ranks: int) -> list[Curve]:
    """The ranks of a layout, real processes of its own.

    Of its own, because torch names groups by how many a process has made: after one layout with a
    pipeline ranks disagree about the names of the next, and wait for each other for ever.
    """
    return run_distributed(train_curve, ranks, config, *_tampering(config), timeout_seconds=600)


def _tampering(config: RunConfig) -> tuple[Any, ...]:
    """With a loss scale: an overflow in the first step, and no tensors, since that is skipped."""
    return (overflow_at_first, False) if config.training.precision == "fp16" else (None, True)


def measure(folder: Path, case: Case) -> Result:
    """Train a case and its reference, and say what differs; datasets are in `folder`."""
    started = time.monotonic()
    config = config_of(folder, case.settings, case.layout)
    reference = reference_curve(reference_of(folder, case.settings, case.layout))
    curves = layout_curves(config, case.layout.ranks)
    still = "" if _moves(reference) else "the losses of one process stand still"
    if config.training.precision == "fp16":
        worst, said = (
            [_furthest(reference, curves), 0.0, 0.0, 0.0],
            unlike_halves(reference, curves),
        )
    else:
        comparison = compare(reference, curves, TOLERANCE)
        worst = _worst(comparison)
        said = "" if comparison.first is None else comparison.first.describe()
    seconds = round(time.monotonic() - started, 1)
    layout = case.layout
    return Result(
        case.name, layout.ranks, case.settings, layout.parallel, *worst, still or said, seconds
    )


def _worst(comparison: Comparison) -> list[float]:
    kinds = ("loss", "gradient norm", "gradient", "weight")
    return [comparison.worst(kind).relative for kind in kinds]


def _furthest(reference: Curve, curves: Sequence[Curve]) -> float:
    return max(
        abs(found - loss) / loss
        for curve in curves
        for found, loss in zip(curve.losses, reference.losses, strict=True)
    )


def _moves(reference: Curve) -> bool:
    """Whether the losses move by a hundred times the tolerance."""
    low, high = min(reference.losses), max(reference.losses)
    return high - low > 100 * TOLERANCE * high


def unlike_halves(reference: Curve, curves: Sequence[Curve]) -> str:
    """What a rank of an fp16 run says otherwise: scales and skipped steps exactly."""
    for rank, curve in enumerate(curves):
        if (curve.scales, curve.skipped) != (reference.scales, reference.skipped):
            return f"scales on rank {rank}: {curve.scales}, not {reference.scales}"
        for kind, found, known in (
            ("loss", curve.losses, reference.losses),
            ("norm", curve.norms, reference.norms),
            ("evaluation", [curve.evaluation], [reference.evaluation]),
        ):
            for step, (one, other) in enumerate(zip(found, known, strict=True)):
                if (one is None) != (other is None) or not _near(
                    one or 0.0, other or 0.0, HALF_TOLERANCE
                ):
                    return f"{kind} at step {step + 1} on rank {rank}: {one}, not {other}"
    return ""


def _near(found: float, expected: float, tolerance: float) -> bool:
    return abs(found - expected) <= tolerance * abs(expected)


def run(
    folder: Path, cases: Sequence[Case], report: Callable[[Sequence[Result]], None]
) -> list[Result]:
    """Run all cases, print each and report those so far; one that fails counts as different."""
    print(f"{len(cases)} rows; largest relative differences over all steps and ranks")
    print("    loss      norm  gradient    weight  seconds  row", flush=True)
    done: list[Result] = []
    for case in cases:
        started = time.monotonic()
        try:
            done.append(measure(folder, case))
        except AssertionError as error:
            said = str(error).strip().splitlines()[-1]
            seconds = round(time.monotonic() - started, 1)
            layout, worst = case.layout, [float("inf")] * 4
            settings, parallel = case.settings, layout.parallel
            done.append(Result(case.name, layout.ranks, settings, parallel, *worst, said, seconds))
        print(_line(done[-1]), flush=True)
        report(done)
    return done


def _line(result: Result) -> str:
    numbers = (result.loss, result.gradient_norm, result.gradient, result.weight)
    cells = "  ".join(f"{number:8.1e}" for number in numbers)
    note = "" if result.equal else f"  DIFFERENT: {result.difference}"
    return f"{cells}  {result.seconds:7.1f}  {result.name}{note}"


def main() -> None:
    """Run, print, write; exit code 1 if a row differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--full", action="store_true", help="plain models, every legal layout")
    chosen.add_argument("--cover", type=int, help="plain models, so many choices together")
    parser.add_argument("--only", default="", help="only rows whose name has this text")
    parser.add_argument("--json", type=Path, help="file for the report")
    arguments = parser.parse_args()
    cases: Sequence[Case] = read_rows()
    if arguments.full or arguments.cover:
        plain = list(plain_cases())
        cases = plain if arguments.full else covering(plain, arguments.cover)
    cases = [case for case in cases if arguments.only in case.name]
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        done = run(write_datasets(Path(folder)), cases, lambda done: _write(arguments.json, done))
    minutes = (time.monotonic() - started) / 60
    different = sum(not result.equal for result in done)
    print(
        f"{len(done)} rows in {minutes:.1f} minutes: {len(done) - different} equal to one process "
        f"within {TOLERANCE:g}, {different} different"
    )
    sys.exit(1 if different else 0)


def _write(path: Path | None, done: Sequence[Result]) -> None:
    """The report of the rows so far, so that a run of hours that is ended leaves what it found."""
    if path is not None:
        write_atomically(path, json.dumps(_report(done), indent=1) + "\n")


def _report(done: Sequence[Result]) -> dict[str, Any]:
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
        "equal": sum(result.equal for result in done),
        "rows": [asdict(result) for result in done],
    }


if __name__ == "__main__":
    main()
