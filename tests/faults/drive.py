"""Many faults at random done to one run, and what they cost.

    python -m tests.faults.drive [--faults 60] [--ranks 4] [--seed 1] [--json FILE]

The kinds and moments are drawn from the seed. The run is started again after each fault until all
have been done, and then to its end, where its weights, losses and samples have to be those of a run
that nothing was done to. Printed is its goodput by its ledger (`roots report`), with the forecast
of Daly for the cost of a save and the rate of failures that were measured.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from roots.training.report.facts import plain
from roots.training.report.read import read_report
from tests.faults.kinds import KINDS, NEEDS_SMALL_DISK
from tests.faults.scene import Scene, check_equal, make_scene, small_disk, undisturbed

# Steps that a kind may let pass before it strikes; a run must not end before its last fault.
_STEPS_A_FAULT = 14


def main() -> int:
    """Do the faults, finish the run, and print what came of it."""
    options = _parser().parse_args()
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    with ExitStack() as stack:
        kinds = sorted(KINDS)
        try:
            stack.enter_context(small_disk(folder / "run", options.megabytes))
        except PermissionError as error:
            print(f"without {', '.join(NEEDS_SMALL_DISK)}: {error}")
            kinds = [kind for kind in kinds if kind not in NEEDS_SMALL_DISK]
        source = random.Random(options.seed)
        drawn = draw(kinds, options.faults, source)
        steps = options.faults * _STEPS_A_FAULT
        scene = make_scene(folder / "run", options.ranks, options.seed, steps)
        started = time.monotonic()
        seconds = strike(scene, drawn)
        scene.finish()
        whole = time.monotonic() - started
        check_equal(scene, undisturbed(scene))
        result = {
            "faults": dict(Counter(drawn)),
            "seed": options.seed,
            "ranks": options.ranks,
            "steps": steps,
            "starts": scene.starts,
            "seconds": whole,
            "seconds_by_kind": seconds,
            "equal": True,
            **goodput(scene),
        }
    shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def draw(kinds: list[str], count: int, source: random.Random) -> list[str]:
    """`count` kinds in random order, each about as often as the others."""
    rounds = -(-count // len(kinds))
    drawn = [kind for _ in range(rounds) for kind in source.sample(kinds, len(kinds))]
    return drawn[:count]


def strike(scene: Scene, drawn: list[str]) -> dict[str, float]:
    """Do the faults one after the other; mean seconds of a start with a fault, by kind."""
    spent: dict[str, list[float]] = {}
    for number, kind in enumerate(drawn, start=1):
        started, first = time.monotonic(), scene.step()
        KINDS[kind](scene)
        spent.setdefault(kind, []).append(time.monotonic() - started)
        print(f"{number:3d} {kind}: steps {first} to {scene.step()}", flush=True)
    return {kind: sum(each) / len(each) for kind, each in sorted(spent.items())}


def goodput(scene: Scene) -> dict[str, object]:
    """What the run's ledger says."""
    return plain(read_report(scene.config.run_directory))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.drive")
    parser.add_argument("--faults", type=int, default=60)
    parser.add_argument("--ranks", type=int, default=4, choices=(2, 4))
    parser.add_argument("--megabytes", type=int, default=64, help="size of the run's disk")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
