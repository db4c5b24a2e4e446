"""Which ranks are slow: seconds of their own in a step, compared with those of their peers.

All ranks end a step together, because they wait for each other, so what is compared is the time in
which a rank does not wait for its replicas: for the step's data, and in its forward passes. In
these there is no communication but over the tensor, context and expert axes, and at ZeRO 3; ranks
that are bound together so are slow together, and named together. The device is waited for at both
ends of a pass, in the steps that are measured alone.

Every measured step is a line of RUN/rank_times.jsonl: {"step": n, "seconds": [one a rank]}. A rank
is named in the log if it was slow in two of them in a row: by the factor checks.slow_rank, and by
more than the jitter of a system, against the median of the ranks of its pipeline stage (stages have
different layers), or of all if it is alone there.
"""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from roots.device import Device, synchronize
from roots.log import get_logger
from roots.parallel.mesh import Mesh
from roots.parallel.process import all_gather_object
from roots.training.anomalies.event_log import EventLog

_logger = get_logger(__name__)

# Less than this is what other programs take on any machine, in a step of milliseconds.
_JITTER_SECONDS = 0.05


class PaceCheck:
    """Measures steps of `module` where it is told to. `begin` and `end` are called by all ranks."""

    def __init__(
        self,
        module: nn.Module,
        mesh: Mesh,
        device: Device,
        events: EventLog,
        factor: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._mesh, self._device, self._events, self._clock = mesh, device, events, clock
        self._factor = factor
        self._seconds = 0.0
        self._since = 0.0
        self._measures = False
        self._slow: set[int] = set()
        self._named: set[int] = set()
        module.register_forward_pre_hook(self._forward_begins)
        module.register_forward_hook(self._forward_ends)

    def begin(self, waited: float) -> None:
        """Measure the step that begins, for whose data this rank has `waited` so many seconds."""
        self._measures = True
        self._seconds = waited

    def end(self, step: int) -> None:
        """Compare the ranks' seconds in `step`, and log and record them.

        Communication: an all-gather of a number and a name a rank.
        """
        self._measures = False
        mine = (self._seconds, self._mesh.pipeline.rank, socket.gethostname())
        found = all_gather_object(self._mesh.world, mine)
        seconds = [each[0] for each in found]
        self._events.write(step=step, seconds=[round(each, 6) for each in seconds])
        medians = medians_of_peers(seconds, [each[1] for each in found])
        slow = {
            rank
            for rank, (own, median) in enumerate(zip(seconds, medians, strict=True))
            if own > self._factor * median and own > median + _JITTER_SECONDS
        }
        self._tell(step, seconds, medians, slow, [each[2] for each in found])

    def _tell(
        self,
        step: int,
        seconds: Sequence[float],
        medians: Sequence[float],
        slow: set[int],
        hosts: Sequence[str],
    ) -> None:
        """Name whoever is slow for the second time, and whoever no longer is; on rank 0."""
        if self._mesh.rank != 0:
            return
        for rank in sorted(slow & self._slow - self._named):
            _logger.warning(
                "rank %d on %s is slow: %.3f s of its own in step %d, its peers %.3f s",
                rank, hosts[rank], seconds[rank], step, medians[rank],
            )  # fmt: skip
        for rank in sorted(self._named - slow):
            _logger.info("rank %d on %s is as fast as its peers again", rank, hosts[rank])
        self._named = (self._named | (slow & self._slow)) & slow
        self._slow = slow

    def _forward_begins(self, module: nn.Module, inputs: Any) -> None:
        if self._measures:
            synchronize(self._device)
            self._since = self._clock()

    def _forward_ends(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._measures:
            synchronize(self._device)
            self._seconds += self._clock() - self._since


def medians_of_peers(seconds: Sequence[float], stages: Sequence[int]) -> list[float]:
    """Of every rank the median of its stage; of a rank alone there that of all. The lower of two
    in the middle, so that of two ranks the faster one counts."""
    medians = []
    for stage in stages:
        peers = [own for own, other in zip(seconds, stages, strict=True) if other == stage]
        medians.append(statistics.median_low(peers if len(peers) > 1 else seconds))
    return medians
