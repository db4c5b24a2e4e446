"""What the watchdog costs a step: `python -m tests.bench.watchdog [--json FILE]`.

A tiny model trains on two Gloo ranks, so that a step has many calls and little to compute, which is
the worst case. The cost of one call that is counted is measured alone, as is that of a beat; their
share of a step follows from how many of them it has. Whole runs with and without the watchdog's
threads alternate beside that. All in processor time, which a neighbour's load does not touch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from roots.config import RunConfig
from roots.lock import Owner
from roots.parallel.watchdog.judge import Limits
from roots.parallel.watchdog.record import Marks, to_line
from roots.parallel.watchdog.recorder import Recorder, recorder_of_process
from roots.parallel.watchdog.speaker import Speaker
from roots.parallel.watchdog.start import LONGEST_BEAT
from roots.parallel.watchdog.watch import Place, Watch
from roots.training import loop
from roots.training.assemble import train_in_process
from tests.bench.measure import describe_machine
from tests.helpers.distributed import run_distributed
from tests.helpers.runs import small_config, write_dataset
from tests.integration.runs import PEAK

CALLS = 200_000
BEATS = 2_000
STEPS = 60
# The first steps warm up.
SKIPPED = 10


def train(rank: int, world_size: int, config: RunConfig) -> tuple[float, float]:
    """Train; the median step's processor seconds, and how many calls were counted in a step."""
    one_step: Callable[..., Any] = loop._one_step
    recorder = recorder_of_process()
    seconds: list[float] = []
    calls: list[int] = []

    def timed(*args: Any) -> Any:
        marks, began = recorder.marks, time.process_time()
        record = one_step(*args)
        seconds.append(time.process_time() - began)
        # A call is entered and left; one of a message that is not waited for is entered.
        calls.append(recorder.marks - marks)
        return record

    with (
        patch("roots.training.assemble.device_peak", return_value=PEAK),
        patch("roots.training.loop._one_step", timed),
    ):
        train_in_process(config)
    return statistics.median(seconds[SKIPPED:]), statistics.median(calls[SKIPPED:])


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
    """What making the line of a beat takes, after calls on three groups and a message."""
    recorder = recorder_of_process()
    for ranks in ([0, 1], [0, 1], [0, 1]):
        dist.all_reduce(torch.ones(1), group=dist.new_group(ranks))
    (dist.send if rank else dist.recv)(torch.ones(1), 1 - rank)
    place = Place(0, (Owner.this_process(),), Path("stacks"), computes=True)
    limits, speaker = Limits(60.0, 1800.0, "stacks"), Speaker(Path("stacks"), 0, "here", 0.0)
    watched = Watch(place, limits, recorder, LONGEST_BEAT, speaker, Marks())
    began = time.process_time()
    for _ in range(BEATS):
        to_line(watched.record())
    return (time.process_time() - began) / BEATS


def trained(folder: Path, timeout_seconds: float | None, turn: int) -> tuple[float, float]:
    """What `train` gives, on rank 0 of two."""
    name = f"{'off' if timeout_seconds == 0 else 'on'}-{turn}"
    config = small_config(
        folder / "data",
        folder,
        run={"name": name},
        parallel={"tensor": 2},
        training={"steps": STEPS},
        tracking={"log_every_steps": STEPS},
        watchdog={"timeout_seconds": timeout_seconds},
    )
    found: tuple[float, float] = run_distributed(train, 2, config)[0]
    return found


def measure(turns: int) -> dict[str, Any]:
    """All numbers; seconds of one processor."""
    steps: dict[str, list[float]] = {"on": [], "off": []}
    calls = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_dataset(folder / "data")
        for turn in range(turns):
            for side, timeout in (("on", None), ("off", 0.0)):
                seconds, calls = trained(folder, timeout, turn)
                steps[side].append(seconds)
    step = statistics.median(steps["on"])
    call, beat = run_distributed(call_seconds, 1)[0], run_distributed(beat_seconds, 2)[0]
    return {
        "call_seconds": call,
        "beat_seconds": beat,
        "calls_a_step": calls,
        "step_seconds": steps,
        "share_of_counting": calls * call / step,
        "share_of_beats": beat / LONGEST_BEAT,
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
