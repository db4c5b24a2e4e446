"""What the watchdog costs a step: `python -m tests.bench.watchdog [--json FILE]`.

A tiny model trains on two Gloo ranks, so that a step has many calls and little to compute, which is
the worst case. The cost of one call that is counted is measured alone, as is that of a beat; their
share of a step follows from how many of them it has. Whole runs with and without the watchdog
alternate beside that: what differs between them is below the noise of a step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from roots.config import RunConfig
from roots.lock import Owner
from roots.parallel.watchdog.judge import Limits
from roots.parallel.watchdog.record import to_line
from roots.parallel.watchdog.recorder import Recorder, recorder_of_process
from roots.parallel.watchdog.start import LONGEST_BEAT
from roots.parallel.watchdog.watch import Place, Watch
from roots.training.assemble import train_in_process
from roots.training.callbacks.metrics import read_metrics
from tests.bench.measure import describe_machine
from tests.helpers.distributed import run_distributed
from tests.helpers.runs import small_config, write_dataset
from tests.integration.runs import PEAK

CALLS = 200_000
BEATS = 2_000
STEPS = 60
# The first steps warm up.
SKIPPED = 10


def train(rank: int, world_size: int, config: RunConfig) -> int:
    """Train, and return how many calls were counted; 0 without a watchdog."""
    with patch("roots.training.assemble.device_peak", return_value=PEAK):
        train_in_process(config)
    if config.watchdog.timeout_seconds == 0:
        return 0
    recorder = recorder_of_process()
    sent, received = recorder.messages()
    return sum(call.number for call in recorder.calls()) + sum((*sent.values(), *received.values()))


def nothing(tensor: object, op: object = None, group: object = None) -> None:
    """A collective that does nothing."""


def call_seconds(rank: int, world_size: int) -> float:
    """What counting adds to one call."""
    recorder = Recorder()
    sides = {"counted": recorder.collective(nothing), "plain": nothing}
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(5):
        for name, call in sides.items():
            began = time.process_time()
            for _ in range(CALLS):
                call(None, group=None)
            found[name].append((time.process_time() - began) / CALLS)
    return min(found["counted"]) - min(found["plain"])


def beat_seconds(rank: int, world_size: int) -> float:
    """What making the line of a beat takes, after collectives on three groups."""
    recorder = recorder_of_process()
    place = Place(0, (Owner.this_process(),), Path("stacks"), computes=True)
    watched = Watch(place, Limits(60.0, 1800.0, "stacks"), recorder, LONGEST_BEAT)
    began = time.process_time()
    for _ in range(BEATS):
        to_line(watched.record())
    return (time.process_time() - began) / BEATS


def step_seconds(folder: Path, timeout_seconds: float | None, turn: int) -> tuple[float, int]:
    """The median step of one run, and its counted calls."""
    name = f"{'off' if timeout_seconds == 0 else 'on'}-{turn}"
    config = small_config(
        folder / "data",
        folder,
        run={"name": name},
        parallel={"tensor": 2},
        training={"steps": STEPS},
        watchdog={"timeout_seconds": timeout_seconds},
    )
    calls = run_distributed(train, 2, config)[0]
    records = read_metrics(config.run_directory / "metrics.jsonl")[SKIPPED:]
    return statistics.median(record.step_seconds for record in records), calls


def measure(turns: int) -> dict[str, Any]:
    """All numbers; seconds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_dataset(folder / "data")
        found = {side: [] for side in ("on", "off")}  # type: dict[str, list[float]]
        calls = 0
        for turn in range(turns):
            for side, timeout in (("on", None), ("off", 0.0)):
                seconds, counted = step_seconds(folder, timeout, turn)
                found[side].append(seconds)
                calls = max(calls, counted)
    step = statistics.median(found["on"])
    call, beat = run_distributed(call_seconds, 1)[0], run_distributed(beat_seconds, 1)[0]
    calls_a_step = calls / STEPS
    return {
        "call_seconds": call,
        "beat_seconds": beat,
        "calls_a_step": calls_a_step,
        "step_seconds": found,
        "share_of_counting": calls_a_step * call / step,
        "share_of_beats": beat / LONGEST_BEAT,
        "measured_difference": step / statistics.median(found["off"]) - 1,
    }


def main() -> None:
    """Measure and print; --json writes the numbers with the machine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = measure(options.turns)
    print(json.dumps(found, indent=2))
    if options.json is not None:
        command = " ".join(["python", "-m", "tests.bench.watchdog", *sys.argv[1:]])
        report = {"command": command, "machine": describe_machine("cpu"), **found}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
