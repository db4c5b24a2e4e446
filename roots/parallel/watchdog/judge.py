"""Who is at fault when a run does not go on: not those that wait, but whom they wait for.

Pure: from what was heard of every rank to a verdict, or none while it may still go on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from roots.errors import ExitCode, problem
from roots.parallel.watchdog.record import Call, Goodbye, Record, Verdict, read_ranks, spell

# How long an error of communication may stay without a rank that has died.
_ERROR_SECONDS = 1.0


@dataclass(frozen=True)
class Limits:
    """Seconds: without a sign (`timeout`), and without progress at work (`busy`); see the docs.

    stacks: the folder of the ranks' stacks, for the message.
    """

    timeout: float
    busy: float
    stacks: str


@dataclass(frozen=True)
class Sight:
    """A rank as it was last heard of, `silent` seconds ago; ended: its connection broke off."""

    record: Record
    silent: float
    ended: bool = False
    goodbye: Goodbye | None = None

    def idle(self) -> float:
        """Seconds for which it has done nothing that shows."""
        return self.record.idle + self.silent

    def late(self, limits: Limits) -> bool:
        """Whether it may no longer keep others waiting."""
        if self.record.still + self.silent > limits.busy:
            return True
        return not self.record.in_long_phase and self.idle() > limits.timeout


def judge(sights: Mapping[int, Sight], limits: Limits) -> Verdict | None:
    """The verdict on the ranks `sights`, or None."""
    for rank, sight in sights.items():
        if sight.ended and sight.goodbye is None:
            return _verdict("died", rank, sights, "has died", limits)
    for rank, sight in sights.items():
        if sight.silent <= limits.timeout:
            continue
        if sight.goodbye is None:
            rule = f"has not answered for {sight.silent:.0f} s (stopped, or its machine is gone)"
            return _verdict("stopped", rank, sights, rule, limits)
        return _verdict("left", rank, sights, f"has left ({sight.goodbye.reason})", limits)
    here = {rank: sight for rank, sight in sights.items() if sight.goodbye is None}
    return _judge_progress(here, limits)


def _judge_progress(sights: Mapping[int, Sight], limits: Limits) -> Verdict | None:
    quiet = {rank for rank, sight in sights.items() if sight.idle() > limits.timeout}
    failed = {
        rank
        for rank, sight in sights.items()
        if sight.record.error and sight.idle() > _ERROR_SECONDS
    }
    if failed:
        return _elsewhere(sights, set(sights), waits_of(sights), limits)
    if not quiet:
        return None
    waits = {rank: each for rank, each in waits_of(sights).items() if rank in quiet}
    awaited = {rank for each in waits.values() for rank in each}
    for rank in sorted(awaited):
        if not waits.get(rank) and sights[rank].late(limits):
            seconds = sights[rank].record.still + sights[rank].silent
            rule = f"has come no further for {seconds:.0f} s in {sights[rank].record.at}"
            return _verdict("stalled", rank, sights, rule, limits)
    stuck = _stuck(quiet, waits, sights)
    return _elsewhere(sights, stuck, waits, limits) if stuck else None


def waits_of(sights: Mapping[int, Sight]) -> dict[int, set[int]]:
    """For every rank, those that have not yet come to a collective or message that it is in."""
    waits: dict[int, set[int]] = {rank: set() for rank in sights}
    members: dict[str, tuple[int, ...]] = {}
    for rank, sight in sights.items():
        for call in sight.record.calls:
            if call.group not in members:
                members[call.group] = read_ranks(call.ranks)
            for other in members[call.group]:
                if other in sights and sights[other].record.number(call.group) < call.number:
                    waits[rank].add(other)
        for peer, count in sight.record.received.items():
            if peer in sights and sights[peer].record.sent.get(rank, 0) < count:
                waits[rank].add(peer)
        last = sight.record.last
        if last is not None and last.name == "send" and sight.record.inside:
            peer = int(last.ranks)
            if peer in sights and sights[peer].record.received.get(rank, 0) < last.number:
                waits[rank].add(peer)
    return waits


def _stuck(quiet: set[int], waits: Mapping[int, set[int]], sights: Mapping[int, Sight]) -> set[int]:
    """Ranks that wait for each other alone, or in different calls of one number; or nobody.

    Whoever waits, however far off, for a rank that moves or rests elsewhere is none of them.
    """
    stuck = {rank for rank in quiet if waits.get(rank) or _differs(rank, quiet, sights)}
    while True:
        free = {rank for rank in stuck if waits.get(rank, set()) - stuck}
        if not free:
            return stuck
        stuck -= free


def _differs(rank: int, quiet: set[int], sights: Mapping[int, Sight]) -> bool:
    """Whether another rank calls something else as the same call on the same group."""
    mine = sights[rank].record.last
    if mine is None or not mine.group:
        return False
    return any(
        call.group == mine.group and call.number == mine.number and call.name != mine.name
        for other in quiet
        for call in sights[other].record.calls
    )


def _elsewhere(
    sights: Mapping[int, Sight],
    stuck: set[int],
    waits: Mapping[int, set[int]],
    limits: Limits,
) -> Verdict | None:
    """The rank that is alone with what it is in; None if all are in the same."""
    places = {rank: _place(sights[rank].record) for rank in stuck}
    common = Counter(places.values())
    if len(common) < 2:
        return None
    votes = Counter(other for rank in stuck for other in waits.get(rank, ()))
    # The fewest companions; then whom most wait for.
    rank = min(sorted(stuck, reverse=True), key=lambda each: (common[places[each]], -votes[each]))
    record = sights[rank].record
    # Of those that wait for it, whoever is in what most are in.
    other = max(
        stuck - {rank}, key=lambda each: (rank in waits.get(each, ()), common[places[each]])
    )
    mine, theirs = (sights[each].record.describe() for each in (rank, other))
    rule = f"is in {mine}, the others in {theirs}"
    if record.error:
        rule += f" ({record.error})"
    return _verdict("elsewhere", rank, sights, rule, limits)


def _place(record: Record) -> tuple[object, ...]:
    """What ranks that work together have in common."""
    last = record.last
    size = 0 if last is None else len(read_ranks(last.ranks))
    return record.phase, record.step, "" if last is None else last.name, size


def _verdict(
    kind: Literal["died", "stopped", "stalled", "elsewhere", "left"],
    rank: int,
    sights: Mapping[int, Sight],
    rule: str,
    limits: Limits,
) -> Verdict:
    sight = sights[rank]
    missing = _missing(rank, sights, told=kind == "stalled")
    tail = f"; it is missing in {missing}" if missing else _last_seen(sight.record)
    if kind == "elsewhere":
        tail = ""
    # A step that all others have ended needed this rank, whose own word may be a beat old.
    others = [each.record.step for other, each in sights.items() if other != rank]
    step = max(sight.record.step, min(others, default=0))
    line = problem(
        f"rank {rank} on host {sight.record.host}",
        None,
        f"{rule}, last step {step}{tail}",
        f"the ranks' stacks are in {limits.stacks}; start again to go on from the last checkpoint",
    )
    code = ExitCode.LOST if sight.goodbye is None else sight.goodbye.code
    return Verdict(rank, kind, line, int(code))


def _last_seen(record: Record) -> str:
    return "" if record.last is None else f"; last in {record.last.describe()}"


def _missing(rank: int, sights: Mapping[int, Sight], told: bool) -> str:
    """The collective or message that most others wait for `rank` in; "" if there is none.

    told: it has itself told where it is; else its word may be a beat old.
    """
    ranks: dict[Call, list[int]] = {}
    for other, sight in sights.items():
        if other != rank:
            for call in _awaited(sight.record, sights[rank].record, told):
                ranks.setdefault(call, []).append(other)
    if not ranks:
        return ""
    call = max(ranks, key=lambda each: (len(ranks[each]), each.number))
    verb = "waits" if len(ranks[call]) == 1 else "wait"
    return f"{call.describe()}, where {_named(ranks[call])} {verb}"


def _awaited(record: Record, missing: Record, told: bool) -> Iterable[Call]:
    """The calls of a rank that another has not come to: its last one, else any before."""
    last = record.last
    if last is not None and _lacks(missing, last, record.rank):
        yield last
    elif told:
        for call in record.calls:
            if _lacks(missing, call, record.rank):
                yield replace(call, number=missing.number(call.group) + 1)


def _lacks(missing: Record, call: Call, caller: int) -> bool:
    """Whether `missing` belongs to this call of `caller` and has not come to it."""
    if missing.rank not in read_ranks(call.ranks):
        return False
    if call.group:
        return missing.number(call.group) < call.number
    counts = missing.received if call.name == "send" else missing.sent
    return counts.get(caller, 0) < call.number


def _named(ranks: list[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {spell(sorted(ranks))}"
