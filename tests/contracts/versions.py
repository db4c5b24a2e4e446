"""The table of versions: contracts and short runs of ROOTS under other torch and DeepSpeed.

    python -m tests.contracts.versions [--torch V ...] [--deepspeed V ...] [--cache DIR] [--json F]

Every --torch with every --deepspeed; unsaid, the pinned versions and the newest that pip finds. An
environment for each is made in the cache folder, outside of the checkout, and used again. Records
of other pairs in F are kept, and docs/pages/versions.md is written anew from F if that is the one
kept in tests/bench/results. Exit code 1 if anything does not hold somewhere.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from roots.files import write_atomically
from tests.contracts.catalogue import CONTRACTS
from tests.contracts.contract import numbers
from tests.contracts.environments import CONSTRAINTS, Environment, NotToBeHad, environment
from tests.contracts.page import PAGE, faults, page_of
from tests.helpers.sources import ROOT

RESULTS = ROOT / "tests" / "bench" / "results" / "versions.json"
TIMEOUT_SECONDS = 3000


def pinned(package: str) -> str:
    """The version in docker/constraints.txt."""
    (line,) = re.findall(rf"^{package}==(.+)$", CONSTRAINTS.read_text(encoding="utf-8"), re.M)
    return str(line)


def newest(package: str) -> str:
    """The newest version that pip finds."""
    command = [sys.executable, "-m", "pip", "index", "versions", package]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return said.partition("(")[2].partition(")")[0]


def observed(where: Environment) -> dict[str, Any]:
    """What tests.contracts.observe writes under the pair, or how it ended without."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "seen.json")
        command = [
            str(where.python),
            "-m",
            "tests.contracts.observe",
            "--roots",
            "--json",
            str(file),
        ]
        log = ""
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=where.variables(),
                capture_output=True,
                text=True,
                timeout=TIMEOUT_SECONDS,
                check=False,
            )
            log = done.stdout + done.stderr
        except subprocess.TimeoutExpired:
            log = f"did not end within {TIMEOUT_SECONDS} s"
        if not file.exists():
            return {"failed": log.strip()[-1000:]}
        return dict(json.loads(file.read_text(encoding="utf-8")))


def entered(record: dict[str, Any], torch: str, deepspeed: str, found: dict[str, Any]) -> None:
    """Put what was found under the pair into `record`, in place of what was there."""
    pair: dict[str, Any] = {"torch": torch, "deepspeed": deepspeed}
    if "contracts" in found:
        pair["installed"] = found["versions"]
        pair["seen"] = {name: each["seen"] for name, each in found["contracts"].items()}
        pair["roots"] = found["roots"]
    else:
        pair.update(found)
    others = [
        each for each in record["pairs"] if (each["torch"], each["deepspeed"]) != (torch, deepspeed)
    ]
    record["pairs"] = sorted(
        [*others, pair], key=lambda each: (numbers(each["torch"]), numbers(each["deepspeed"]))
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every pair that is asked for; write after each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--torch", nargs="+", default=None)
    parser.add_argument("--deepspeed", nargs="+", default=None)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir(), "roots-versions"))
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    versions = {
        package: getattr(options, package) or sorted({pinned(package), newest(package)})
        for package in ("torch", "deepspeed")
    }
    record: dict[str, Any] = {"contracts": {}, "pairs": []}
    if options.json.exists():
        record = json.loads(options.json.read_text(encoding="utf-8"))
    record["command"] = "python -m tests.contracts.versions --torch V ... --deepspeed V ..."
    record["machine"] = {"python": platform.python_version(), "platform": platform.platform()}
    record["contracts"] = {each.name: each.words() for each in CONTRACTS}
    good = True
    for torch in versions["torch"]:
        for deepspeed in versions["deepspeed"]:
            try:
                found = observed(environment(options.cache, torch, deepspeed))
            except NotToBeHad as error:
                found = {"failed": str(error)}
            entered(record, torch, deepspeed, found)
            write_atomically(options.json, json.dumps(record, indent=1) + "\n")
            lines = list(faults(record, torch, deepspeed))
            good = good and not lines
            print(f"torch {torch}, deepspeed {deepspeed}:", *(lines or ["good"]), sep="\n  ")
    if options.json.resolve() == RESULTS:
        write_atomically(PAGE, page_of(record, PAGE.read_text(encoding="utf-8")))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
