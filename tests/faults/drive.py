"""Many faults at random done to one run, and what they cost.

    python -m tests.faults.drive [--faults 60] [--ranks 4] [--seed 1] [--json FILE]
    python -m tests.faults.drive --faults 60 --scale 72 [--runs 3] [--step-seconds 2] [--json FILE]

The kinds and moments are drawn from the seed. The run is started again after each fault until all
have been done, and then to its end, where its weights, losses and samples have to be those of a run
that nothing was done to. Printed is its goodput by its ledger (`roots report`), with the forecast
of Daly for the cost of a save and the rate of failures that were measured.

The first command does fault after fault (tests/bench/results/faults.json). The second lets HOURS /
SCALE pass between them on average, at moments that are drawn at random (faults-3h.json there): what
a save, a restart, noticing and work done twice cost weighs SCALE times as much as in a run with a
fault every HOURS hours. In its steps ranks wait for --step-seconds, a stand-in for GPUs that
compute, so that it needs little of a processor; the run that nothing is done to does not wait.
With --runs the faults are shared by so many runs at a time, whose seeds count up.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from roots.training.report.facts import plain
from roots.training.report.read import read_report
from tests.bench.measure import describe_machine
from tests.faults.kinds import KINDS, NEEDS_SMALL_DISK
from tests.faults.scene import Scene, check_equal, make_scene, small_disk, undisturbed

# Steps that a kind may let pass before it strikes; a run must not end before its last fault.
_STEPS_A_FAULT = 14
_HOUR = 3600.0
# What ranks do in a step besides waiting for the device that they do not have.
_REST_OF_A_STEP = 0.03


def main() -> int:
    """Do the faults, finish the runs, and print what came of them."""
    options = _parser().parse_args()
    result = one(options) if options.runs == 1 else several(options)
    result = {
        "command": " ".join(["python", "-m", "tests.faults.drive", *sys.argv[1:]]),
        "machine": describe_machine("cpu"),
        **result,
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def several(options: argparse.Namespace) -> dict[str, Any]:
    """Several runs at a time: the results of each, and the goodput of all their time together."""
    folder = Path(tempfile.mkdtemp(prefix="faults-of-runs-"))
    files = [folder / f"{seed}.json" for seed in range(options.seed, options.seed + options.runs)]
    started = []
    for file in files:
        words = {**vars(options), "runs": 1, "json": file, "seed": int(file.stem)}
        words["faults"] = options.faults // options.runs
        given = [f"--{name.replace('_', '-')}={value}" for name, value in words.items() if value]
        started.append(subprocess.Popen([sys.executable, "-m", "tests.faults.drive", *given]))
    codes = [process.wait() for process in started]
    assert not any(codes), f"a run has failed; what the others found is in {folder}"
    runs = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    shutil.rmtree(folder)
    wall = sum(run["wall_seconds"] for run in runs)
    expected = [(run["wall_seconds"], run["forecast"]["plans"][0]["goodput"]) for run in runs]
    return {
        "faults": sum(sum(run["faults"].values()) for run in runs),
        "equal": all(run["equal"] for run in runs),
        "goodput": sum(run["wall_seconds"] * run["goodput"] for run in runs) / wall,
        "forecast": sum(seconds * each for seconds, each in expected) / wall,
        "failure_seconds": wall / sum(run["failures"] for run in runs),
        "runs": runs,
    }


def one(options: argparse.Namespace) -> dict[str, Any]:
    """The faults of one run, and what came of it."""
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
        scene = _scene(folder / "run", options)
        started = time.monotonic()
        seconds = strike(scene, drawn, _moments(options, source))
        scene.finish()
        whole = time.monotonic() - started
        check_equal(scene, undisturbed(scene))
        result = {
            "faults": dict(Counter(drawn)),
            "seed": options.seed,
            "ranks": options.ranks,
            "drive_seconds": whole,
            "seconds_by_kind": seconds,
            "equal": True,
            **_scale(options),
            **goodput(scene),
        }
    shutil.rmtree(folder, ignore_errors=True)
    return result


def draw(kinds: list[str], count: int, source: random.Random) -> list[str]:
    """`count` kinds in random order, each about as often as the others."""
    rounds = -(-count // len(kinds))
    drawn = [kind for _ in range(rounds) for kind in source.sample(kinds, len(kinds))]
    return drawn[:count]


def strike(scene: Scene, drawn: list[str], moments: Sequence[float | None]) -> dict[str, float]:
    """Do the faults one after the other; mean seconds of a start with a fault, by kind.

    moments: when each comes, in seconds from now; None: when its kind wants.
    """
    spent: dict[str, list[float]] = {}
    begun = time.monotonic()
    for number, (kind, moment) in enumerate(zip(drawn, moments, strict=True), start=1):
        started, first = time.monotonic(), scene.step()
        scene.moment = None if moment is None else begun + moment
        KINDS[kind](scene)
        spent.setdefault(kind, []).append(time.monotonic() - started)
        print(f"{number:3d} {kind}: steps {first} to {scene.step()}", flush=True)
    return {kind: sum(each) / len(each) for kind, each in sorted(spent.items())}


def goodput(scene: Scene) -> dict[str, object]:
    """What the run's ledger says, of all starts together."""
    report = plain(read_report(scene.config.run_directory))
    del report["run"]
    return {**report, "starts": len(report["starts"])}


def _scene(folder: Path, options: argparse.Namespace) -> Scene:
    """The run that the faults are done to."""
    if options.scale is None:
        return make_scene(folder, options.ranks, options.seed, options.faults * _STEPS_A_FAULT)
    whole = options.faults * _seconds(options)
    scene = make_scene(
        folder,
        options.ranks,
        options.seed,
        round(whole / (options.step_seconds + _REST_OF_A_STEP)),
        model={"num_layers": 2, "dropout": 0.1},
        # One micro-batch: what a step takes beside its waiting is to be little.
        training={"micro_batch_size": 4},
        checkpoint={"every_steps": 2 * options.save_every, "local_every_steps": options.save_every},
        checks={"replay_every_steps": 20, "pace_every_steps": 10},
        tracking={"log_every_steps": 10},
        watchdog={"timeout_seconds": 5.0, "busy_seconds": 30.0},
    )
    scene.step_seconds = options.step_seconds
    return scene


def _seconds(options: argparse.Namespace) -> float:
    """The mean time between two faults."""
    return float(options.hours * _HOUR / options.scale)


def _moments(options: argparse.Namespace, source: random.Random) -> Sequence[float | None]:
    """When the faults come: anywhere in the time that they share, as failures do."""
    if options.scale is None:
        return [None] * options.faults
    whole = options.faults * _seconds(options)
    return sorted(source.uniform(0.0, whole) for _ in range(options.faults))


def _scale(options: argparse.Namespace) -> dict[str, Any]:
    """What stands for hours of GPUs."""
    if options.scale is None:
        return {}
    return {
        "scaled": {
            "hours_between_faults": options.hours,
            "scale": options.scale,
            "seconds_between_faults": _seconds(options),
            "step_waits_seconds": options.step_seconds,
        }
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.drive")
    parser.add_argument("--faults", type=int, default=60)
    parser.add_argument("--ranks", type=int, default=4, choices=(2, 4))
    parser.add_argument("--megabytes", type=int, default=64, help="size of the run's disk")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    scaled = parser.add_argument_group("a run of hours, scaled")
    scaled.add_argument("--scale", type=float, metavar="TIMES", help="as much shorter it is")
    scaled.add_argument("--hours", type=float, default=3.0, help="between two faults, on average")
    scaled.add_argument("--step-seconds", type=float, default=2.0, help="that a step waits")
    scaled.add_argument("--save-every", type=int, default=2, metavar="STEPS", help="locally")
    scaled.add_argument("--runs", type=int, default=1, help="at a time, which share the faults")
    return parser


if __name__ == "__main__":
    sys.exit(main())
