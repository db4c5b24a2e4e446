"""What this process calls of torch.distributed: counted by group, with the name of the last call.

ROOTS and DeepSpeed both look these functions up in torch.distributed when they call them, so what
stands there is replaced by a wrapper that counts and calls the function. A count costs well under a
microsecond and formats nothing; reading is left to the watchdog's own thread.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

from roots.parallel.watchdog.record import Call, spell

# Some torches lack some.
_COLLECTIVES = (
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_gather_single",
    "all_reduce",
    "all_to_all",
    "all_to_all_single",
    "barrier",
    "broadcast",
    "broadcast_object_list",
    "gather",
    "monitored_barrier",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_single",
    "reduce_scatter_tensor",
    "scatter",
)
# DeepSpeed takes these, coalesced, from where torch defines them.
_ALSO_WHERE_DEFINED = ("all_gather_into_tensor",)
_KNOWN_BY = "roots_recorder"


@dataclass
class _Entry:
    """The calls on one group, or with one peer in one direction, so far."""

    group: str
    ranks: str
    count: int = 0
    name: str = ""


class Recorder:
    """Counts the calls of this process; the same functions on every rank, so counts compare."""

    def __init__(self) -> None:
        self._groups: dict[Any, _Entry] = {}
        self._sent: dict[int, int] = {}
        self._received: dict[int, int] = {}
        self._last: _Entry | None = None
        self._inside = False
        self.marks = 0  # calls entered and left
        self.seconds = 0.0  # in calls; on CPUs, all that wait for other ranks but handles' `wait`

    def restart(self) -> None:
        """Forget what was counted; all ranks do it between the same two calls."""
        self._groups.clear()
        self._sent.clear()
        self._received.clear()
        self._last, self._inside = None, False

    @property
    def inside(self) -> bool:
        """Whether a call has been entered and not been left."""
        return self._inside

    def calls(self) -> tuple[Call, ...]:
        """The last call on every group."""
        return tuple(_call(entry) for entry in list(self._groups.values()))

    def last(self) -> Call | None:
        """The call that was entered last, on a group or with a peer."""
        return None if self._last is None else _call(self._last)

    def messages(self) -> tuple[dict[int, int], dict[int, int]]:
        """By peer, the messages to it and from it that have been asked for."""
        return dict(self._sent), dict(self._received)

    def collective(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, counted on its group."""
        name = function.__name__
        place = list(inspect.signature(function).parameters).index("group")
        groups = self._groups

        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            group = args[place] if len(args) > place else kwargs.get("group")
            entry = groups.get(group) or self._first(group)
            entry.count += 1
            entry.name = name
            self._last = entry
            self._inside = True
            self.marks += 1
            entered = time.perf_counter()
            result = function(*args, **kwargs)
            self.seconds += time.perf_counter() - entered
            self._inside = False
            self.marks += 1
            return result

        setattr(counted, _KNOWN_BY, self)
        return counted

    def message(self, function: Callable[..., Any], peer_name: str) -> Callable[..., Any]:
        """`function`, which sends to or receives from its second argument, counted by that peer."""
        name = function.__name__
        counts = self._sent if name == "send" else self._received

        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            peer = args[1] if len(args) > 1 else kwargs.get(peer_name)
            self._pass(name, counts, peer)
            self._inside = True
            entered = time.perf_counter()
            result = function(*args, **kwargs)
            self.seconds += time.perf_counter() - entered
            self._inside = False
            self.marks += 1
            return result

        return counted

    def batch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, which starts a list of sends and receives, each counted by its peer."""

        @functools.wraps(function)
        def counted(p2p_op_list: list[dist.P2POp]) -> Any:
            for each in p2p_op_list:
                sends = each.op is dist.isend
                counts = self._sent if sends else self._received
                self._pass("send" if sends else "recv", counts, each.peer)
            return function(p2p_op_list)

        return counted

    def _pass(self, name: str, counts: dict[int, int], peer: int | None) -> None:
        # Without a global rank (group_dst, group_src) there is nobody to compare counts with.
        if peer is not None:
            counts[peer] = counts.get(peer, 0) + 1
            self._last = _Entry("", str(peer), counts[peer], name)
        self.marks += 1

    def _first(self, group: Any) -> _Entry:
        """The entry of a group that is called for the first time; None is all ranks."""
        whole: Any = dist.group.WORLD if group is None else group
        entry = self._groups.get(whole)
        if entry is None:
            ranks = dist.get_process_group_ranks(whole)
            entry = self._groups[whole] = _Entry(whole.group_name, spell(ranks))
        self._groups[group] = entry
        return entry


def recorder_of_process() -> Recorder:
    """The recorder that counts in this process, put in place by the first call."""
    known: Recorder | None = getattr(dist.all_reduce, _KNOWN_BY, None)
    if known is not None:
        return known
    recorder = Recorder()
    for name in filter(partial(hasattr, dist), _COLLECTIVES):
        counted = recorder.collective(getattr(dist, name))
        setattr(dist, name, counted)
        if name in _ALSO_WHERE_DEFINED:
            setattr(distributed_c10d, name, counted)
    for name, peer in (("send", "dst"), ("recv", "src")):
        setattr(dist, name, recorder.message(getattr(dist, name), peer))
    dist.batch_isend_irecv = recorder.batch(dist.batch_isend_irecv)
    return recorder


def _call(entry: _Entry) -> Call:
    return Call(entry.group, entry.name, entry.count, entry.ranks)
