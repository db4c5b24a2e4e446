"""Who is at fault: the rank that others wait for, never one that waits for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from roots.errors import ExitCode
from roots.parallel.watchdog.judge import Limits, Sight, judge, waits_of
from roots.parallel.watchdog.record import Call, Goodbye, Record

LIMITS = Limits(timeout=10.0, busy=100.0, stacks="RUN/stacks")
TAIL = "; the ranks' stacks are in RUN/stacks; start again to go on from the last checkpoint"


def call(group: str, number: int, ranks: str, name: str = "all_reduce") -> Call:
    return Call(group, name, number, ranks)


def sight(rank: int, *calls: Call, silent: float = 0.1, **fields: Any) -> Sight:
    """A rank of host hN in step 4, which has waited in the last of `calls` for 20 s."""
    values: dict[str, Any] = {"idle": 20.0, "still": 20.0, "inside": True, "phase": "compute"}
    values.update(fields)
    last = calls[-1] if calls else None
    record = Record(rank, f"h{rank}", 3, begun=True, last=last, calls=calls, **values)
    return Sight(record, silent)


def world(*sights: Sight) -> dict[int, Sight]:
    return {each.record.rank: each for each in sights}


WORLD = call("w", 8, "0-2")
BEFORE = call("w", 7, "0-2")


def line_of(sights: dict[int, Sight]) -> str:
    verdict = judge(sights, LIMITS)
    assert verdict is not None
    assert verdict.code == ExitCode.LOST
    return verdict.line


def test_a_rank_in_its_data_for_which_others_wait_is_at_fault() -> None:
    resting = sight(1, BEFORE, phase="data", inside=False)
    assert line_of(world(sight(0, WORLD), resting, sight(2, WORLD))) == (
        "rank 1 on host h1: has come no further for 20 s in its data, last step 3; it is missing "
        "in all_reduce number 8 over ranks 0-2, where ranks 0,2 wait" + TAIL
    )


def test_waiting_for_one_that_waits_is_traced_to_its_cause() -> None:
    """Rank 0 waits for 1 in a pair, 1 for 2 in another; 2 rests."""
    first, second = call("a", 5, "0,1"), call("b", 5, "1,2")
    sights = world(
        sight(0, first),
        sight(1, replace(first, number=4), second),
        sight(2, replace(second, number=4), phase="data", inside=False),
    )
    assert waits_of(sights) == {0: {1}, 1: {2}, 2: set()}
    assert line_of(sights).startswith("rank 2 on host h2: has come no further for 20 s in its data")


def test_a_message_that_was_never_sent_is_a_reason_to_wait() -> None:
    receiving = sight(1, received={0: 3}, sent={})
    receiving = replace(receiving, record=replace(receiving.record, last=Call("", "recv", 3, "0")))
    resting = sight(0, sent={1: 2}, phase="data", inside=False)
    assert (
        "rank 0 on host h0: has come no further for 20 s in its data, last step 3; it is missing "
        "in recv number 3 from rank 0, where rank 1 waits" in line_of(world(resting, receiving))
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"idle": 1.0},  # computes
        {"idle": 1.0, "still": 1.0},  # has just come further
        {"phase": "checkpoint"},
        {"phase": "restart"},
    ],
)
def test_whoever_works_or_moves_may_be_waited_for(fields: dict[str, Any]) -> None:
    slow = sight(1, BEFORE, inside=False, **fields)
    assert judge(world(sight(0, WORLD), slow, sight(2, WORLD)), LIMITS) is None


def test_before_its_first_step_a_rank_may_take_long() -> None:
    slow = sight(1, BEFORE, inside=False)
    slow = replace(slow, record=replace(slow.record, begun=False))
    assert judge(world(sight(0, WORLD), slow, sight(2, WORLD)), LIMITS) is None


@pytest.mark.parametrize("phase", ["compute", "checkpoint"])
def test_work_has_a_bound_too(phase: str) -> None:
    slow = sight(1, BEFORE, inside=False, phase=phase, idle=0.0, still=101.0)
    assert "rank 1 on host h1: has come no further for 101 s" in line_of(
        world(sight(0, WORLD), slow, sight(2, WORLD))
    )


def test_nobody_is_judged_while_nobody_waits() -> None:
    sights = world(*(sight(rank, BEFORE, inside=False) for rank in range(3)))
    assert judge(sights, LIMITS) is None


def test_all_in_the_same_collective_is_nobodys_fault() -> None:
    assert judge(world(*(sight(rank, WORLD) for rank in range(3))), LIMITS) is None


def test_a_rank_whose_connection_broke_off_has_died() -> None:
    died = replace(sight(1, BEFORE), ended=True)
    # What the dead rank told last is a beat old: that all others have ended step 5 is known.
    others = [sight(rank, WORLD, idle=0.0, still=0.0) for rank in (0, 2)]
    others = [replace(each, record=replace(each.record, step=5)) for each in others]
    assert line_of(world(died, *others)) == (
        "rank 1 on host h1: has died, last step 5; it is missing in all_reduce number 8 over ranks "
        "0-2, where ranks 0,2 wait" + TAIL
    )


def test_a_silent_rank_is_told_from_one_that_waits() -> None:
    stopped = sight(1, BEFORE, silent=11.0, idle=0.0, still=0.0)
    assert "rank 1 on host h1: has not answered for 11 s (stopped, or its machine is gone), " in (
        line_of(world(sight(0, WORLD), stopped, sight(2, WORLD)))
    )


def test_another_collective_with_the_same_number() -> None:
    other = sight(1, replace(WORLD, name="broadcast"))
    assert line_of(world(sight(0, WORLD), other, sight(2, WORLD))) == (
        "rank 1 on host h1: is in broadcast number 8 over ranks 0-2, in a step after step 3, the "
        "others in all_reduce number 8 over ranks 0-2, in a step after step 3, last step 3" + TAIL
    )


def test_a_circle_through_other_groups_has_one_that_stands_alone() -> None:
    """TP 2 x DP 2 in a gradient sum, but rank 3 waits for all at a save."""
    pairs = {0: call("a", 2, "0,2"), 1: call("b", 2, "1,3"), 2: call("c", 2, "2,3")}
    everyone = call("w", 9, "0-3", "barrier")
    sights = world(
        *(sight(rank, replace(everyone, number=8), pairs[rank]) for rank in (0, 1)),
        sight(2, replace(everyone, number=8), replace(pairs[0], number=1), pairs[2]),
        sight(
            3,
            *(replace(pairs[rank], number=1) for rank in (1, 2)),
            everyone,
            phase="checkpoint",
        ),
    )
    assert line_of(sights).startswith(
        "rank 3 on host h3: is in barrier number 9 over ranks 0-3, in a checkpoint after step 3, "
        "the others in all_reduce number 2 over ranks "
    )


def test_a_circle_that_waits_for_a_moving_rank_is_none() -> None:
    """Ranks 0 and 1 wait for each other, as they seem, and 1 for 2, which computes."""
    first, second = call("a", 5, "0,1"), call("b", 5, "1,2")
    sights = world(
        sight(0, first, sent={}, received={1: 1}),
        sight(1, replace(first, number=4), second, received={0: 1}),
        sight(2, replace(second, number=4), inside=False, idle=0.0),
    )
    assert judge(sights, LIMITS) is None


def test_an_error_of_communication_without_a_dead_rank_is_looked_at_at_once() -> None:
    failed = sight(1, WORLD, error="RuntimeError: gloo", idle=1.5, still=1.5, phase="evaluation")
    others = [sight(rank, WORLD, idle=0.0, still=0.0) for rank in (0, 2)]
    assert "rank 1 on host h1: is in all_reduce number 8 over ranks 0-2, in an evaluation" in (
        line_of(world(failed, *others))
    )


def test_a_rank_that_has_left_is_missed_after_the_timeout_with_its_own_code() -> None:
    left = replace(sight(1, BEFORE, silent=2.0), goodbye=Goodbye(1, 4, "RootsError: loss=nan"))
    assert judge(world(sight(0, WORLD), left, sight(2, WORLD)), LIMITS) is None
    verdict = judge(world(sight(0, WORLD), replace(left, silent=11.0), sight(2, WORLD)), LIMITS)
    assert verdict is not None
    assert (verdict.kind, verdict.code) == ("left", 4)
    assert verdict.line.startswith(
        "rank 1 on host h1: has left (RootsError: loss=nan), last step 3"
    )
