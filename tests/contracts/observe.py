"""Observe contracts: what the installed DeepSpeed and torch do, beside what is expected of them.

    python -m tests.contracts.observe [--roots] [--json FILE] [PART OF A NAME ...]

With --roots some short runs of ROOTS itself as well. Exit code 1 if something is not as expected.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.contracts.contract import Place
from tests.helpers.distributed import RankFailure, run_distributed

RANKS = (1, 2)


def observe_here(rank: int, ranks: int, parts: Sequence[str], folder: str) -> dict[str, Any]:
    """By name what every contract for so many ranks shows on this one, and what is expected.

    `parts` chooses those of which the name has one of them; none chooses all. In place of a value
    there is the traceback of what was raised. "seconds" is the processor time of this rank.
    """
    from tests.contracts.catalogue import CONTRACTS
    from tests.contracts.tiny import prepare, silent

    warnings.simplefilter("ignore")
    prepare()
    found: dict[str, Any] = {}
    for each in CONTRACTS:
        if each.ranks != ranks or (parts and not any(part in each.name for part in parts)):
            continue
        place = Place(rank, ranks, Path(folder, each.name))
        place.folder.mkdir(parents=True, exist_ok=True)
        try:
            with silent():
                seen = json.loads(json.dumps(each.observe(place)))
        except Exception:  # noqa: BLE001 - an observation that fails is a finding like another
            seen = {"raised": traceback.format_exc(limit=-3)}
        expected = each.expected(importlib.metadata.version(each.of))
        found[each.name] = {"seen": seen, "expected": expected, "holds": seen == expected}
    found["seconds"] = round(time.process_time(), 1)
    return found


def observe(ranks: int, parts: Sequence[str] = ()) -> dict[str, Any]:
    """`observe_here` on the first of so many ranks; says on stderr what it cost."""
    with tempfile.TemporaryDirectory() as folder:
        found = run_distributed(observe_here, ranks, parts, folder, timeout_seconds=500)[0]
    print(f"{ranks} ranks: {found.pop('seconds')} CPU seconds in the first", file=sys.stderr)
    return dict(found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print, and write if asked to, what is seen."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--roots", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("parts", nargs="*")
    options = parser.parse_args(arguments)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "deepspeed")}
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    found: dict[str, Any] = {}
    for ranks in RANKS:
        try:
            found |= observe(ranks, options.parts)
        except RankFailure as failure:
            print(f"contracts of {ranks} ranks: {failure}")
    for name, each in found.items():
        if not each["holds"]:
            print(f"{name}: {each['seen']}\n    instead of {each['expected']}")
    held = sum(each["holds"] for each in found.values())
    print(f"{held} of {len(found)} contracts hold")
    outcomes: dict[str, str] = {}
    if options.roots:
        from tests.contracts.smoke import outcomes as outcomes_of_roots

        outcomes = outcomes_of_roots()
        for name, outcome in outcomes.items():
            print(f"ROOTS: {name}: {outcome}")
    if options.json:
        record = {"versions": versions, "contracts": found, "roots": outcomes}
        options.json.write_text(json.dumps(record, indent=1))
    return 0 if held == len(found) and set(outcomes.values()) <= {"holds"} else 1


if __name__ == "__main__":
    sys.exit(main())
