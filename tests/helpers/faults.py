"""Ranks that meet by themselves and are watched, for tests in which some of them go wrong.

Unlike those of `run_distributed` they may end as they like: what each says and its exit code is
what a test looks at.
"""

from __future__ import annotations

import os
import pickle
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from roots.config.training import WatchdogConfig
from roots.device import Device, LaunchEnvironment, end_process
from roots.errors import RootsError
from roots.parallel.watchdog.record import Marks
from roots.parallel.watchdog.start import join
from tests.helpers.distributed import fork_context

# Whoever runs longer hangs.
_SECONDS = 40.0


@dataclass(frozen=True)
class Ended:
    """How a rank ended: its exit code (negative: by that signal), and what it wrote to stderr."""

    code: int
    stderr: str
    seconds: float


def run_ranks(
    function: Callable[..., None], world_size: int, folder: Path, *args: Any
) -> list[Ended]:
    """Call function(environment, *args) in a process for each rank; how each ended, by rank.

    `seconds` are from the moment at which the file FOLDER/fault was written to the rank's end. No
    process outlives the call; one that would have is an AssertionError.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = fork_context()
    task = pickle.dumps((function, args))
    places = [
        LaunchEnvironment(rank, rank, world_size, world_size, "127.0.0.1", port)
        for rank in range(world_size)
    ]
    ranks = [context.Process(target=_run_rank, args=(place, folder, task)) for place in places]
    ends = [0.0] * world_size
    try:
        for each in ranks:
            each.start()
        # The first start has waited for the server of the forks and all that it imports.
        deadline = time.monotonic() + _SECONDS
        for rank, each in enumerate(ranks):
            each.join(max(0.0, deadline - time.monotonic()))
            ends[rank] = time.time()
        left = [rank for rank, each in enumerate(ranks) if each.exitcode is None]
        assert not left, f"ranks {left} are left"
    finally:
        for each in ranks:
            each.kill()
            each.join()
    fault = folder / "fault"
    began = fault.stat().st_mtime if fault.exists() else ends[0]
    return [
        Ended(each.exitcode or 0, (folder / f"stderr_{rank}").read_text("utf-8"), end - began)
        for rank, (each, end) in enumerate(zip(ranks, ends, strict=True))
    ]


def run_watched(
    function: Callable[..., None],
    world_size: int,
    folder: Path,
    section: WatchdogConfig,
    *args: Any,
) -> list[Ended]:
    """As run_ranks, with function(rank, marks, *args) in a process group that is watched."""
    return run_ranks(be_watched, world_size, folder, folder, section, function, args)


def be_watched(
    place: LaunchEnvironment,
    folder: Path,
    section: WatchdogConfig,
    function: Callable[..., None],
    args: tuple[Any, ...],
    told: Callable[[], bool] = lambda: False,
    *,
    marks: Marks | None = None,
) -> None:
    """One rank of run_watched."""
    device = Device("cpu", 0)
    try:
        with join(section, folder, place, device, told, marks) as marks:
            function(place.rank, marks, *args)
    except RootsError as error:
        if error.speaks:
            sys.stderr.write("".join(f"roots: error: {line}\n" for line in error.lines))
            sys.stderr.flush()
        end_process(int(error.exit_code))


def _run_rank(place: LaunchEnvironment, folder: Path, task: bytes) -> None:
    with open(folder / f"stderr_{place.rank}", "wb") as file:
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    function, args = pickle.loads(task)
    function(place, *args)


def steps(
    marks: Marks, count: int, step: Callable[[int], None], data: Callable[[int], None]
) -> None:
    """Train as the loop does: `data` and `step` of every update, from number 1."""
    marks.begin(0)
    for number in range(1, count + 1):
        marks.enter("data")
        data(number)
        marks.enter("compute")
        step(number)
        marks.done(number)
        marks.enter("other")
