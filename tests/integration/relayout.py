"""Hand over a run from every layout to every other one of its family, and say how they go on.

    OMP_NUM_THREADS=1 python -m tests.integration.relayout [OPTION]...

Each layout trains a run to its end, with a checkpoint on the way. Then each takes over that of
every other one, and its own: it saves at once what it has read, which must be the same to the bit,
and trains to the end, which must be that of the run that was never handed over: losses, fp32
weights and moments within rounding, loss scale and samples equal. The report goes to the terminal
and, as JSON, to file F. The exit code is 1 if any pair differs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from roots.config import RunConfig
from roots.files import write_atomically
from tests.bench.measure import describe_machine
from tests.helpers.distributed import run_distributed
from tests.integration.families import (
    FAMILIES,
    HANDED_OVER,
    STEPS,
    Family,
    Layout,
    config_of,
    write_datasets,
)
from tests.integration.handing_over import (
    TOLERANCE,
    Job,
    Told,
    apart,
    checkpoint_of,
    not_taken_over,
    train_all,
)

_SECONDS = 3600.0


@dataclass(frozen=True)
class Handover:
    """From a layout to another, and what came of it."""

    source: str
    target: str
    taken_over: bool
    losses: float
    masters: float
    moments: float
    equal: bool


@dataclass(frozen=True)
class Matrix:
    """Pairs of layouts of a family in one precision: all, or those with one of `anchors`."""

    family: Family
    precision: str
    folder: Path
    anchors: frozenset[str] = frozenset()

    def source(self, layout: Layout) -> RunConfig:
        """The run that a layout trains from beginning to end."""
        saves = {"checkpoint": {"every_steps": HANDED_OVER}}
        return config_of(self.family, layout, self.precision, self.folder, layout.name, **saves)

    def target(self, source: Layout, target: Layout) -> RunConfig:
        """The run that takes over."""
        begins = {"checkpoint": {"resume": str(checkpoint_of(self.source(source), HANDED_OVER))}}
        name = f"{source.name}-to-{target.name}"
        return config_of(self.family, target, self.precision, self.folder, name, **begins)

    def run(self) -> list[Handover]:
        """Train everything: a start for each number of ranks, first of sources, then of targets."""
        layouts = self.family.layouts
        told = self._train({each.name: Job((self.source(each),)) for each in layouts})
        told |= self._train(
            {
                target.name: Job(tuple(self.target(source, target) for source in self._to(target)))
                for target in layouts
            }
        )
        pairs = [(source, target) for target in layouts for source in self._to(target)]
        pairs.sort(key=lambda pair: layouts.index(pair[0]))
        return [self._handover(source, target, told) for source, target in pairs]

    def _to(self, target: Layout) -> list[Layout]:
        """From where `target` takes over."""
        anchored = not self.anchors or target.name in self.anchors
        return [each for each in self.family.layouts if anchored or each.name in self.anchors]

    def _train(self, jobs: dict[str, Job]) -> Told:
        told: Told = {}
        for ranks in sorted({each.ranks for each in self.family.layouts}):
            mine = [jobs[each.name] for each in self.family.layouts if each.ranks == ranks]
            told |= run_distributed(train_all, ranks, mine, timeout_seconds=_SECONDS)[0]
        return told

    def _handover(self, source: Layout, target: Layout, told: Told) -> Handover:
        whole, parts = self.source(source), self.target(source, target)
        taken = not_taken_over(
            checkpoint_of(whole, HANDED_OVER), checkpoint_of(parts, HANDED_OVER, again=True)
        )
        found = apart(
            parts,
            (told[parts.run.name], checkpoint_of(parts, STEPS)),
            (told[whole.run.name][HANDED_OVER:], checkpoint_of(whole, STEPS)),
        )
        return Handover(
            source.name,
            target.name,
            not taken,
            round(found.losses, 4),
            round(found.masters, 4),
            round(found.moments, 4),
            not taken and found.equal,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every matrix that is asked for; 0 if all pairs are equal."""
    options = _parser().parse_args(arguments)
    reports = []
    for family in _chosen(options.only, options.layouts):
        for precision in options.precision or TOLERANCE:
            started = time.monotonic()
            with tempfile.TemporaryDirectory(prefix="relayout-") as name:
                folder, anchors = write_datasets(Path(name)), frozenset(options.anchors.split(","))
                found = Matrix(family, precision, folder, anchors - {""}).run()
            reports.append(_report(family, precision, found))
            reports[-1]["wall_seconds"] = round(time.monotonic() - started)
            print(_line(reports[-1]), flush=True)
    if options.json is not None:
        tree = {
            "command": " ".join(["python", "-m", "tests.integration.relayout", *sys.argv[1:]]),
            "machine": describe_machine("cpu"),
            "steps": f"{HANDED_OVER} before, {STEPS - HANDED_OVER} after",
            "shares": "of what losses, fp32 weights and moments may be apart, at most 1",
            "matrices": reports,
        }
        write_atomically(options.json, json.dumps(tree, indent=1) + "\n")
    return 0 if all(each["equal"] == each["pairs"] for each in reports) else 1


def _chosen(only: str, layouts: str) -> list[Family]:
    """The families that are asked for, with those of their layouts that are."""
    names = layouts.split(",")
    return [
        replace(
            family,
            layouts=tuple(each for each in family.layouts if not layouts or each.name in names),
        )
        for family in FAMILIES
        if only in ("", family.name)
    ]


def _report(family: Family, precision: str, found: Sequence[Handover]) -> dict[str, Any]:
    return {
        "family": family.name,
        "precision": precision,
        "tolerance": TOLERANCE[precision],
        "layouts": {
            each.name: {"ranks": each.ranks, "micro_batch": each.micro_batch, **each.parallel}
            for each in family.layouts
        },
        "pairs": len(found),
        "taken_over_to_the_bit": sum(each.taken_over for each in found),
        "equal": sum(each.equal for each in found),
        "largest": {
            kind: max(getattr(each, kind) for each in found)
            for kind in ("losses", "masters", "moments")
        },
        "differ": [f"{each.source} > {each.target}" for each in found if not each.equal],
        "shares": {
            f"{each.source} > {each.target}": [each.losses, each.masters, each.moments]
            for each in found
        },
    }


def _line(report: dict[str, Any]) -> str:
    largest = ", ".join(f"{kind} {value:.2f}" for kind, value in report["largest"].items())
    words = (
        f"{report['family']} in {report['precision']}: {report['equal']} of {report['pairs']} "
        f"pairs of layouts go on as before, {report['taken_over_to_the_bit']} read to the bit; "
        f"of what rounding may do at most: {largest}; {report['wall_seconds']} s"
    )
    return "\n".join([words, *(f"  differs: {each}" for each in report["differ"])])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.integration.relayout", description=__doc__
    )
    names = [each.name for each in FAMILIES]
    parser.add_argument("--only", default="", choices=names, help="one family; by default all")
    parser.add_argument("--layouts", default="", metavar="A,B,...", help="by default all")
    parser.add_argument(
        "--anchors", default="", metavar="A,B,...", help="only pairs with one of these layouts"
    )
    parser.add_argument(
        "--precision", action="append", choices=list(TOLERANCE), help="by default all; repeatable"
    )
    parser.add_argument("--json", type=Path, metavar="F", help="write what was found to F")
    return parser


if __name__ == "__main__":
    sys.exit(main())
