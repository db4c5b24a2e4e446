"""Putting the watchdog of a run together, on all its ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from roots.config.training import WatchdogConfig
from roots.device import Device, LaunchEnvironment, process_start, slurm_job
from roots.lock import Owner
from roots.parallel.mesh import Axis
from roots.parallel.process import all_gather_object, initialise
from roots.parallel.shared_errors import together
from roots.parallel.watchdog.judge import Limits
from roots.parallel.watchdog.meeting import Meeting
from roots.parallel.watchdog.record import Marks
from roots.parallel.watchdog.recorder import recorder_of_process
from roots.parallel.watchdog.sides import HubSide, SpokeSide
from roots.parallel.watchdog.speaker import Speaker
from roots.parallel.watchdog.stacks import FOLDER
from roots.parallel.watchdog.watch import Place, Unwatched, Watch

_CPU_SECONDS, _GPU_SECONDS = 60.0, 300.0
# Beats within the timeout, and how long one lasts at most.
_BEATS, LONGEST_BEAT = 20, 3.0


def join(
    section: WatchdogConfig,
    run_directory: Path,
    environment: LaunchEnvironment,
    device: Device,
    told: Callable[[], bool] = lambda: False,
    marks: Marks | None = None,
) -> Watch | Unwatched:
    """Join the process group of this run; return the context in which this rank is watched then.

    Called by all ranks, which are watched from here on: those that do not come are named too. A
    lone process is not watched, nor any with a timeout of 0. `told`: whether a signal has asked
    this process to stop, which it obeys here if the others do not come; `marks`: of this rank.
    Communication: an all-gather of small objects. Raises RootsError where the ranks cannot meet.
    """
    marks = Marks() if marks is None else marks
    computes = device.kind == "cpu"
    seconds = section.timeout_seconds
    if seconds is None:
        seconds = _CPU_SECONDS if computes else _GPU_SECONDS
    if environment.world_size == 1 or seconds == 0:
        initialise(environment, device)
        return Unwatched(marks)
    rank, size = environment.rank, environment.world_size
    stacks = run_directory / FOLDER
    mine = Owner.this_process(slurm_job())
    speaker = Speaker(stacks, rank, mine.host, since=process_start())
    with Meeting(environment, section.start_seconds, speaker, told, marks) as meeting:
        initialise(environment, device)
        world = Axis("world", size, rank, tuple(range(size)), dist.group.WORLD)
        owners = tuple(all_gather_object(world, mine))
        together(world, meeting.complete)
    beat = min(seconds / _BEATS, LONGEST_BEAT)
    # Noticed within the timeout: a sign may be one beat old, and is looked at once a beat.
    limits = Limits(seconds - 2 * beat, max(section.busy_seconds, seconds), str(stacks))
    recorder = recorder_of_process()
    recorder.restart()
    watched = Watch(Place(rank, owners, stacks, computes), limits, recorder, beat, speaker, marks)
    side: HubSide | SpokeSide
    if meeting.hub is not None:
        meeting.hub.listener.close()
        side = HubSide(watched, meeting.hub, meeting.heard)
    else:
        assert meeting.line is not None, "every rank but 0 is connected"
        side = SpokeSide(watched, meeting.line, meeting.heard)
    watched.set_side(side.run, side.close)
    return watched
