"""Random legal configs, each proven as `roots verify` does: on correct code none raises an alarm.

    python -m tests.verify.random_configs [--count 200] [--seed 0] [--precision fp32] [--json FILE]

Fields of all sections are drawn, rare ones often; the config's own rules decide what is legal. FILE
is written as it goes, and a run that finds it goes on from there. Exit code 1: an alarm.
tests/bench/results/verify-random*.json are such reports.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from roots.config import RunConfig, parse_config
from roots.config.load import dump_config
from roots.config.rules.batch import fewest_ranks
from roots.config.shrink import Precision, in_fp32, one_process, shrink
from roots.errors import ExitCode, RootsError
from roots.files import write_atomically
from roots.verify.compare import Comparison, Curve, compare
from roots.verify.launch import launch
from roots.verify.proof import TOLERANCE, compare_all, write_data
from tests.verify.random_fields import draw

MOST_RANKS = 4
Data = dict[str, list[str]]


@dataclass(frozen=True)
class Drawn:
    """One config of the count, its small copy, and on how many ranks that runs."""

    number: int
    tree: dict[str, Any]
    ranks: int
    small: RunConfig


@dataclass(frozen=True)
class Row:
    """What the proof of one config gave; `largest`: relative differences by kind.

    bare:    what would be told without the floors of rounding, "" if nothing; None: not asked
    refused: the line by which its ops refused it when the model was built: it was no legal config
    """

    number: int
    ranks: int
    config: dict[str, Any]
    equal: bool
    first_difference: str
    largest: dict[str, float]
    bare: str | None
    seconds: float
    refused: str = ""


def legal(seed: int, data: Data, precision: Precision = "fp32") -> Iterator[Drawn]:
    """Legal configs without end, the same ones for the same seed."""
    generator = random.Random(seed)
    number = 0
    while True:
        tree = draw(generator)
        try:
            config = parse_config(tree)
            least = fewest_ranks(config)
            ranks = least if 2 * least > MOST_RANKS else 2 * least
            if ranks <= MOST_RANKS:
                yield Drawn(number, tree, ranks, shrink(config, ranks, data, precision))
                number += 1
        except RootsError:
            continue


class Prover:
    """Proofs in folders of their own below `folder`; a reference that was needed before is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._references: dict[str, Curve] = {}

    def row(self, drawn: Drawn) -> Row:
        """Prove one config; ranks that fail count as a difference."""
        started = time.monotonic()

        def row(equal: bool, first: str, bare: str | None, **more: Any) -> Row:
            seconds = round(time.monotonic() - started, 1)
            largest = more.pop("largest", {})
            return Row(
                drawn.number, drawn.ranks, drawn.tree, equal, first, largest, bare, seconds, **more
            )

        try:
            references, curves = self.curves(drawn)
        except RootsError as error:
            if error.exit_code == ExitCode.BAD_INPUT:
                return row(True, "", "", refused=str(error))
            return row(False, str(error), str(error))
        comparison, against_fp32 = compare_all(references, curves)
        firsts = [_first(each) for each in (comparison, *against_fp32) if not each.equal]
        largest, bare = _by_kind(comparison), None
        if not against_fp32:
            bare = _first(compare(replace(references[0], arithmetic=None), curves, TOLERANCE))
        return row(not firsts, "; ".join(firsts), bare, largest=largest)

    def curves(self, drawn: Drawn) -> tuple[list[Curve], list[Curve]]:
        """Those of one process, in 16 bits also of one in fp32, and those of the layout."""
        alone = one_process(drawn.small)
        half = alone.training.precision != "fp32"
        kinds = (alone, in_fp32(alone)) if half else (alone,)
        references = [self._reference(each, drawn.number) for each in kinds]
        place = self.folder / f"{drawn.number}-layout"
        return references, launch(drawn.small, drawn.ranks, place, on_gpus=False)

    def _reference(self, alone: RunConfig, number: int) -> Curve:
        key = dump_config(alone)
        if key not in self._references:
            place = self.folder / f"{number}-one-process-{alone.training.precision}"
            (self._references[key],) = launch(alone, 1, place, on_gpus=False)
        return self._references[key]


def _first(comparison: Comparison) -> str:
    return "" if comparison.first is None else comparison.first.describe()


def _by_kind(comparison: Comparison) -> dict[str, float]:
    found: dict[str, float] = {}
    for each in comparison.largest:
        found[each.kind] = max(found.get(each.kind, 0.0), float(f"{each.relative:.1e}"))
    return found


def main() -> None:
    """Draw, prove, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=200, help="how many configs")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of configs to prove alone")
    parser.add_argument("--json", type=Path, help="file for the report")
    arguments = parser.parse_args()
    rows = _rows_of(arguments.json)
    done = {row.number for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        prover = Prover(Path(folder))
        data = write_data(Path(folder))
        for drawn in legal(arguments.seed, data, arguments.precision):
            if drawn.number >= arguments.count:
                break
            wanted = not arguments.only or drawn.number in arguments.only
            if wanted and drawn.number not in done:
                rows.append(prover.row(drawn))
                print(_line(rows[-1]), flush=True)
                _write(arguments.json, rows)
    counts = _counts(rows)
    print(json.dumps(counts))
    sys.exit(1 if counts["alarms"] else 0)


def _counts(rows: list[Row]) -> dict[str, int]:
    """What came out, and of those of which it was asked, what would have without floors."""
    asked = [row for row in rows if row.bare is not None and not row.refused]
    return {
        "proven": sum(not row.refused for row in rows),
        "alarms": sum(not row.equal for row in rows),
        "asked_without_floors": len(asked),
        "alarms_without_floors": sum(bool(row.bare) for row in asked),
    }


def _line(row: Row) -> str:
    what = f"{row.number:4d} {row.ranks} ranks {row.seconds:6.1f} s"
    if row.refused:
        return f"{what}  refused {row.refused}"
    if not row.equal:
        return f"{what}  ALARM {row.first_difference}  {json.dumps(row.config)}"
    bare = f"  without floors {row.bare}" if row.bare else ""
    return f"{what}  {max(row.largest.values()):.1e}{bare}"


def _rows_of(path: Path | None) -> list[Row]:
    if path is None or not path.exists():
        return []
    return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]


def _write(path: Path | None, rows: list[Row]) -> None:
    if path is None:
        return
    report = {
        "command": " ".join(["python", "-m", "tests.verify.random_configs", *sys.argv[1:]]),
        "machine": {
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("torch", "deepspeed")},
        },
        **_counts(rows),
        "off_default": dict(Counter(_fields(rows)).most_common()),
        "rows": [asdict(row) for row in rows],
    }
    write_atomically(path, json.dumps(report) + "\n")


def _fields(rows: list[Row]) -> Iterator[str]:
    """The fields that were drawn, by dotted names, once for every config."""
    for row in rows:
        for section, values in row.config.items():
            yield from (f"{section}.{name}" for name in values)


if __name__ == "__main__":
    main()
