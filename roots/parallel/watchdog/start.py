"""Putting the watchdog of a run together, on all its ranks."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist

from roots.config.training import WatchdogConfig
from roots.device import Device, LaunchEnvironment, slurm_job
from roots.lock import Owner
from roots.parallel.mesh import Axis
from roots.parallel.process import all_gather_object
from roots.parallel.shared_errors import together
from roots.parallel.watchdog.judge import Limits
from roots.parallel.watchdog.link import Hub, Line, connect
from roots.parallel.watchdog.recorder import recorder_of_process
from roots.parallel.watchdog.sides import HubSide, SpokeSide
from roots.parallel.watchdog.stacks import FOLDER
from roots.parallel.watchdog.watch import Place, Unwatched, Watch

_CPU_SECONDS, _GPU_SECONDS = 60.0, 300.0
# Beats within the timeout, and how long one lasts at most.
_BEATS, LONGEST_BEAT = 20, 3.0


def watch(
    section: WatchdogConfig, run_directory: Path, environment: LaunchEnvironment, device: Device
) -> Watch | Unwatched:
    """The context in which this rank is watched, with the marks by which it tells of itself.

    Called by all ranks, in the process group. A lone process is not watched, nor any with a
    timeout of 0. Communication: three all-gathers of small objects. Raises RootsError on all ranks
    if one cannot reach rank 0.
    """
    computes = device.kind == "cpu"
    seconds = section.timeout_seconds
    if seconds is None:
        seconds = _CPU_SECONDS if computes else _GPU_SECONDS
    if environment.world_size == 1 or seconds == 0:
        return Unwatched()
    rank, size = environment.rank, environment.world_size
    world = Axis("world", size, rank, tuple(range(size)), dist.group.WORLD)
    hub = together(world, lambda: Hub.open(environment.master_addr) if rank == 0 else None)
    mine = Owner.this_process(slurm_job())
    known = all_gather_object(world, (mine, None if hub is None else (hub.port, hub.token)))
    port, token = known[0][1] or (0, "")
    beat = min(seconds / _BEATS, LONGEST_BEAT)
    stacks = run_directory / FOLDER
    # Noticed within the timeout: a sign may be one beat old, and is looked at once a beat.
    limits = Limits(seconds - 2 * beat, max(section.busy_seconds, seconds), str(stacks))

    def meet() -> Line | None:
        if hub is not None:
            hub.admit(size - 1)
            return None
        return connect(environment.master_addr, port, token, rank)

    line = together(world, meet)
    recorder = recorder_of_process()
    recorder.restart()
    owners = tuple(owner for owner, _ in known)
    watched = Watch(Place(rank, owners, stacks, computes), limits, recorder, beat)
    side: HubSide | SpokeSide
    if hub is not None:
        side = HubSide(watched, hub)
    else:
        assert line is not None, "every rank but 0 is connected"
        side = SpokeSide(watched, line)
    watched.set_side(side.run, side.close)
    return watched
