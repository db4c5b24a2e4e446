"""python -m tests.planted: plant every bug alone, run its check, and print the share caught."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.planted import PlantedBug, all_bugs
from tests.planted.planting import Outcome, planted, preload, run_checks

_SHOWN = 2000


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 if every chosen bug is caught, by a check that passes without it."""
    options = _parser().parse_args(arguments)
    bugs = [bug for bug in all_bugs() if options.only in bug.title]
    bugs = [bug for bug in bugs if options.file is None or bug.file == options.file]
    bugs = bugs[options.part - 1 :: options.parts]
    preload()
    started = time.monotonic()
    broken = [] if options.trust else broken_checks(bugs)
    rows = [_row(bug, broken) for bug in bugs]
    caught = sum(row["caught"] for row in rows)
    seconds = sum(row["seconds"] for row in rows)
    wall = time.monotonic() - started
    print(f"caught {caught} of {len(rows)} ({caught / max(len(rows), 1):.1%}), ", end="")
    print(f"{seconds:.0f} s of processor time with bugs, {wall:.0f} s in all")
    for bug, row in zip(bugs, rows, strict=True):
        if not row["caught"]:
            print(f"missed: {bug.title} (check: {bug.check})")
    for check in broken:
        print(f"fails without a bug: {check}")
    if options.json is not None:
        options.json.write_text(json.dumps(_report(rows), indent=1) + "\n", encoding="utf-8")
    return 0 if caught == len(rows) and not broken else 1


def broken_checks(bugs: Sequence[PlantedBug]) -> list[str]:
    """The checks of the bugs that do not pass on the tree as it is."""
    broken = []
    with planted(None) as copy:
        checks = list(Counter(bug.check for bug in bugs))
        # All in one process first: only where that fails each is asked alone.
        if checks and not run_checks(copy, checks).passed:
            for check in checks:
                outcome = run_checks(copy, [check])
                if not outcome.passed:
                    print(f"{check}\n{_end(outcome)}", file=sys.stderr)
                    broken.append(check)
    return broken


def _row(bug: PlantedBug, broken: Sequence[str]) -> dict[str, object]:
    with planted(bug) as copy:
        outcome = run_checks(copy, [bug.check])
    caught = outcome.failed and bug.check not in broken
    print(f"{'caught' if caught else 'MISSED'}  {outcome.seconds:5.1f} s  {bug.title}", flush=True)
    if not outcome.failed and not outcome.passed:
        print(_end(outcome), file=sys.stderr)
    return {
        "bug": bug.title,
        "caught": caught,
        "check": bug.check,
        "seconds": round(outcome.seconds, 1),
    }


def _report(rows: Sequence[dict[str, object]]) -> dict[str, object]:
    """The rows, how they came about, and the machine."""
    # Only now, behind the last fork, because it imports ROOTS.
    from tests.bench.measure import describe_machine

    return {
        "command": " ".join(["python", "-m", "tests.planted", *sys.argv[1:]]),
        "machine": describe_machine("cpu"),
        "bugs": len(rows),
        "caught": sum(bool(row["caught"]) for row in rows),
        "rows": rows,
    }


def _end(outcome: Outcome) -> str:
    return f"exit code {outcome.code}\n{outcome.output[-_SHOWN:]}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.planted", description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="bugs with TEXT in their title")
    parser.add_argument("--file", metavar="F", help="bugs in roots/F")
    parser.add_argument("--part", type=int, default=1, metavar="K", help="the K-th of --parts")
    parser.add_argument("--parts", type=int, default=1, metavar="N", help="every N-th bug")
    parser.add_argument("--json", type=Path, metavar="F", help="write what was found to F")
    parser.add_argument(
        "--trust", action="store_true", help="do not run the checks on the unchanged tree first"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
