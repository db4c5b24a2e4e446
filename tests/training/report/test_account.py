"""Sums over all starts of a run: what was lost, what failed, what it took."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from roots.errors import ExitCode, RootsError
from roots.training.callbacks.ledger import Ledger
from roots.training.report.account import ALL_CATEGORIES, WORK, read_account
from roots.training.report.facts import ending, start_rows
from tests.helpers.ledgers import FACTS, FakeRun, killed_and_resumed

STEP = {"data": 0.5, "compute": 1.0, "communication": 0.25, "other": 0.25}


@pytest.fixture
def run(tmp_path: Path) -> FakeRun:
    return FakeRun(tmp_path)


def test_whole_run_loses_nothing(run: FakeRun) -> None:
    began = run.clock.now
    ledger = run.start(0)
    run.steps(ledger, 1, 10)
    run.save(ledger)
    with ledger.span("evaluation"):
        run.clock.pass_(3)
    ledger.end(ExitCode.DONE)
    account = read_account(run.path)
    assert account.wall == run.clock.now - began == 5 + 20 + 2 + 3
    assert account.seconds == {
        **dict.fromkeys(ALL_CATEGORIES, 0.0),
        "restart": 5.0,
        **{name: 10 * each for name, each in STEP.items()},
        "checkpoint": 2.0,
        "evaluation": 3.0,
    }
    assert account.goodput == (10 + 2.5 + 3) / 30
    assert account.useful_share == 15.5 / 23
    assert (account.steps, account.step_seconds) == (10, 2.3)
    assert (account.num_saves, account.save_seconds) == (1, 2.0)
    assert (account.failures, account.failure_seconds) == (0, None)
    assert not account.starts[0].failed


def test_steps_after_the_checkpoint_of_a_killed_process_are_lost(run: FakeRun) -> None:
    killed_and_resumed(run.folder)
    account = read_account(run.path)
    expected = {name: 20 * each for name, each in STEP.items()}
    assert account.seconds == {
        **expected,
        "evaluation": 0.0,
        "checkpoint": 4.0,
        "restart": 10.0,
        "lost": 8.0,
        "idle": 41.5,
    }
    assert account.wall == 40 + 4 + 10 + 8 + 41.5
    assert account.goodput == 25 / account.wall
    assert (account.failures, account.failure_seconds) == (1, account.wall - 41.5)
    assert (account.restart_seconds, account.idle_seconds) == (5.0, 41.5)
    first, second = account.starts
    assert (first.failed, first.code, first.first_step, first.last_step) == (True, None, 0, 14)
    assert (second.failed, second.ranks, second.layout) == (False, 4, "4 ranks = tensor 4, ZeRO 0")
    # The share of a line that spans the checkpoint is lost; here all lines are of one step.
    assert sum(account.seconds[name] for name in WORK) == account.work == 40


def test_time_after_a_run_was_done_is_none_of_it(run: FakeRun) -> None:
    """Done at 2, and continued a day later; then interrupted, and continued a minute later."""
    for first, code, pause in ((0, ExitCode.DONE, 86_400), (2, ExitCode.INTERRUPTED, 60)):
        ledger = run.start(first)
        run.steps(ledger, first + 1, first + 2)
        ledger.end(code)
        run.clock.pass_(pause)
    run.start(4)
    account = read_account(run.path)
    assert (account.seconds["idle"], account.seconds["lost"], account.steps) == (60.0, 0.0, 4)
    assert account.wall == 2 * (5 + 4) + 60 + 5


def test_part_of_a_line_can_be_lost(run: FakeRun) -> None:
    """A line of steps 1 to 4, and the next start goes on from 1: three quarters are lost."""
    ledger = run.start(0)
    ledger._written = run.clock.now + 8
    run.steps(ledger, 1, 4)
    ledger.end(ExitCode.INTERRUPTED)
    run.start(1).end(ExitCode.INTERRUPTED)
    account = read_account(run.path)
    assert account.seconds["lost"] == 6.0
    assert {name: account.seconds[name] for name in STEP} == STEP
    assert (account.failures, account.steps) == (0, 1)


def test_several_restarts_lose_each_what_they_repeat(run: FakeRun) -> None:
    """Saved at 4; killed at 7, again at 6, again while it starts; then a good end at 8."""
    ledger = run.start(0)
    run.steps(ledger, 1, 4)
    run.save(ledger)
    run.steps(ledger, 5, 7)
    for last in (6, None):
        run.clock.pass_(10)
        ledger = run.start(4)
        if last is None:
            # As if it had been killed before it began: its last line is that of the start.
            text = run.path.read_text().splitlines(keepends=True)
            run.path.write_text("".join(text[:-1]))
            break
        run.steps(ledger, 5, last)
    run.clock.pass_(10)
    ledger = run.start(4)
    run.steps(ledger, 5, 8)
    run.save(ledger)
    ledger.end(ExitCode.DONE)
    account = read_account(run.path)
    assert account.seconds["lost"] == 3 * 2 + 2 * 2
    assert account.seconds["compute"] == 8.0
    # 1 s of the start that never began is not known to have run.
    assert account.seconds["restart"] == 5 + 5 + 4 + 5
    assert account.seconds["idle"] == 10 + 10 + 10 + 1
    assert [start.failed for start in account.starts] == [True, True, True, False]
    assert [start.first_step for start in account.starts] == [0, 4, None, 4]
    assert account.failures == 3
    assert account.failure_seconds == pytest.approx(account.uptime / 3)
    # The start that never began says nothing of how long a restart takes.
    assert account.restart_seconds == 5.0
    assert account.idle_seconds == 31 / 3


def test_run_that_dies_before_its_first_save_loses_all(run: FakeRun) -> None:
    run.steps(run.start(0), 1, 3)
    run.start(0)
    account = read_account(run.path)
    assert (account.seconds["lost"], account.work, account.steps) == (6.0, 0.0, 0)
    assert (account.goodput, account.step_seconds, account.save_seconds) == (0.0, None, None)


def test_a_rewind_loses_steps_within_a_process(run: FakeRun) -> None:
    ledger = run.start(0)
    run.steps(ledger, 1, 6)
    ledger.rewound(4)
    run.steps(ledger, 5, 8)
    ledger.end(ExitCode.DONE)
    account = read_account(run.path)
    assert (account.seconds["lost"], account.seconds["compute"]) == (4.0, 8.0)
    assert (account.steps, account.failures) == (8, 0)


def test_a_rewind_that_nobody_tells_of_shows_by_its_steps(run: FakeRun) -> None:
    """Steps 5 and 6 are lost, and the first of those done again counts with them."""
    ledger = run.start(0)
    run.steps(ledger, 1, 6)
    run.steps(ledger, 5, 8)
    ledger.end(ExitCode.DONE)
    account = read_account(run.path)
    assert (account.seconds["lost"], account.steps) == (6.0, 8)


def test_an_evaluation_after_the_checkpoint_is_lost_with_its_step(run: FakeRun) -> None:
    ledger = run.start(0)
    run.steps(ledger, 1, 2)
    run.save(ledger)
    with ledger.span("evaluation"):
        run.clock.pass_(3)
    run.steps(ledger, 3, 4)
    with ledger.span("evaluation"):
        run.clock.pass_(5)
    run.steps(ledger, 5, 5)
    run.start(2)
    account = read_account(run.path)
    # The first one comes after the save of step 2, but lies in the line of step 3.
    assert account.seconds["lost"] == 3 * 2.0 + 3 + 5
    assert account.seconds["evaluation"] == 0.0


@pytest.mark.parametrize(
    "code, begins, failed",
    [
        (ExitCode.DONE, True, False),
        (ExitCode.INTERRUPTED, True, False),
        (ExitCode.BUG, True, True),
        (ExitCode.DIVERGED, True, True),
        (ExitCode.BAD_INPUT, True, True),
        (ExitCode.BAD_INPUT, False, False),
        (ExitCode.BUG, False, True),
    ],
)
def test_what_a_failure_is(run: FakeRun, code: ExitCode, begins: bool, failed: bool) -> None:
    run.start(0).end(code)
    lines = run.lines()
    if not begins:
        lines = [line for line in lines if line["event"] != "begin"]
    run.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (start,) = read_account(run.path).starts
    assert start.failed is failed


def test_the_end_that_another_rank_tells_is_when_rank_0_was_last_there(run: FakeRun) -> None:
    """Saved at 2, stopped after 3, found so 60 s later; 10 s on a start dies 20 s into loading."""
    ledger = run.start(0)
    run.steps(ledger, 1, 2)
    run.save(ledger)
    run.steps(ledger, 3, 3)
    run.clock.pass_(60)
    other = Ledger(clock=run.clock, wall=run.clock)
    other.tell_end(run.path, 7, "rank 0 stopped")
    run.clock.pass_(10)
    started = run.clock.now
    run.clock.pass_(1)
    Ledger(run.path, started=started, clock=run.clock, wall=run.clock).start()
    run.clock.pass_(19)
    other.tell_end(run.path, 7, "rank 0 died")
    account = read_account(run.path)
    assert [(start.code, start.cause) for start in account.starts] == [
        (7, "rank 0 stopped"),
        (7, "rank 0 died"),
    ]
    assert [ending(start) for start in account.starts] == [
        "code 7, rank 0 stopped",
        "code 7, rank 0 died",
    ]
    assert [start.first_step for start in account.starts] == [0, None]
    assert account.failures == 2
    assert (account.seconds["lost"], account.seconds["idle"]) == (60.0, 10.0)
    assert account.seconds["restart"] == 5 + 20
    assert account.wall == run.clock.now - account.starts[0].started
    # Another rank may take it for dead while it writes its own end.
    ledger = run.start(2)
    ledger.end(ExitCode.DONE)
    run.clock.pass_(5)
    other.tell_end(run.path, 7, "rank 0 died")
    last = read_account(run.path).starts[-1]
    assert (last.code, last.cause, last.ended) == (0, "", run.clock.now - 5)


def test_the_lock_of_a_start_tells_how_long_it_lived_on(run: FakeRun) -> None:
    """Nobody tells its end: the next start found its last sign, 8 s after its last line."""
    run.steps(run.start(0), 1, 2)
    sign = run.clock.now + 8
    run.clock.pass_(30)
    run.start(0, found=sign).end(ExitCode.INTERRUPTED)
    account = read_account(run.path)
    assert (account.seconds["lost"], account.seconds["idle"]) == (4 + 8.0, 22.0)
    assert account.starts[0].ended == sign
    assert (account.starts[0].code, account.failures) == (None, 1)
    # A sign of a process that has told its end is older than that.
    run.start(0, found=run.clock.now - 1)
    assert read_account(run.path).starts[1].ended == run.clock.now - 5


def test_a_start_that_dies_in_its_imports_is_one(run: FakeRun) -> None:
    started = run.clock.now
    run.clock.pass_(1)
    Ledger(run.path, started=started, clock=run.clock, wall=run.clock).start()
    account = read_account(run.path)
    assert (len(account.starts), account.failures, account.seconds["restart"]) == (1, 1, 1.0)
    (row,) = start_rows(account)
    assert row[2:] == ("-", "-", "died")
    # Its last sign, where no start has come after it.
    account = read_account(run.path, last_sign=started + 11)
    assert (account.seconds["restart"], account.wall) == (11.0, 11.0)
    assert read_account(run.path, running=True, last_sign=started + 11).wall == 1.0


def test_a_start_of_before_ranks_had_to_meet_is_read(run: FakeRun) -> None:
    run.steps(run.start(0), 1, 1)
    start, met, *others = run.lines()
    facts = {name: met[name] for name in (*FACTS, "communication")}
    old = [{**start, **facts}, *others]
    run.path.write_text("".join(json.dumps(line) + "\n" for line in old))
    (found,) = read_account(run.path).starts
    assert (found.ranks, found.layout, found.communication) == (2, FACTS["layout"], True)


def test_a_process_that_still_runs_has_not_failed(run: FakeRun) -> None:
    run.steps(run.start(0), 1, 3)
    assert (read_account(run.path).failures, read_account(run.path).running) == (1, False)
    account = read_account(run.path, running=True)
    assert (account.failures, account.running) == (0, True)


def test_saves_tell_how_much_is_done_before_they_are_whole(run: FakeRun) -> None:
    """The first is whole after two steps of 2 s, the second at once, the third never."""
    ledger = run.start(0)
    run.steps(ledger, 1, 1)
    run.save(ledger, whole=False)
    run.steps(ledger, 2, 3)
    ledger.written(1, 3.5, 1000)
    run.save(ledger, whole=False)
    ledger.written(3, 2.5, 1024)
    run.steps(ledger, 4, 4)
    run.save(ledger, whole=False)
    run.start(3).end(ExitCode.DONE)
    account = read_account(run.path)
    assert (account.num_bytes, account.write_seconds) == (1024, (3.5, 2.5))
    assert (account.save_delays, account.delay_seconds) == ((4.0, 0.0), 2.0)
    assert (account.num_saves, account.save_seconds) == (2, 2.0)


def test_saves_that_failed_and_copies_are_no_saves(run: FakeRun) -> None:
    """Saved at 1; failed at 2 after it had begun, at 3 at once; copies at 4 and 5; killed in 6."""
    ledger = run.start(0)
    run.steps(ledger, 1, 1)
    run.save(ledger)
    run.steps(ledger, 2, 2)
    run.save(ledger, whole=False)
    ledger.not_saved(2)
    run.steps(ledger, 3, 3)
    with ledger.span("checkpoint"):
        run.clock.pass_(2)
    ledger.not_saved(3)
    for step in (4, 5):
        run.steps(ledger, step, step)
        with ledger.span("checkpoint"):
            run.clock.pass_(2)
        ledger.copied()
    run.steps(ledger, 6, 6)
    run.save(ledger, whole=False)
    account = read_account(run.path)
    assert [step for _, step in account.starts[0].saves] == [1]
    assert (account.num_saves, account.num_failed_saves, account.num_local_copies) == (1, 2, 2)
    assert (account.seconds["checkpoint"], account.save_seconds) == (12.0, 2.0)
    assert len(account.save_delays) == 1


def test_torn_lines_are_counted_and_left_out(run: FakeRun) -> None:
    ledger = run.start(0)
    run.steps(ledger, 1, 3)
    whole = run.path.read_text()
    run.path.write_text(whole[:-10])
    ledger = run.start(0)
    run.steps(ledger, 1, 4)
    run.path.write_text(run.path.read_text() + '{"event": "steps", "step"')
    account = read_account(run.path)
    assert (account.unreadable, account.steps, account.seconds["lost"]) == (2, 4, 4.0)
    run.path.write_text(whole + '["event"]\n{"event": "odd", "step": 1, "seconds": {"x": 1}}\n\n')
    assert read_account(run.path).unreadable == 3


def test_a_start_that_found_no_room_is_still_one(run: FakeRun) -> None:
    run.steps(run.start(0), 1, 3)
    lines = run.lines()[1:]
    run.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    account = read_account(run.path)
    assert (account.steps, account.seconds["compute"]) == (3, 3.0)
    assert account.starts[0].first_step == 0


def test_clocks_that_differ_take_no_time_away(run: FakeRun) -> None:
    """The second machine's clock is 100 s behind: nothing idle, and all of its own seconds."""
    ledger = run.start(0)
    run.steps(ledger, 1, 2)
    ledger.end(ExitCode.INTERRUPTED)
    run.clock.pass_(-100)
    ledger = run.start(2)
    run.steps(ledger, 3, 4)
    ledger.end(ExitCode.DONE)
    account = read_account(run.path)
    assert (account.seconds["idle"], account.wall) == (0.0, 5 + 4 + 5 + 4)


def test_mistakes_are_one_line_each(run: FakeRun) -> None:
    def refusal() -> tuple[str, ...]:
        with pytest.raises(RootsError) as caught:
            read_account(run.path)
        return caught.value.lines

    assert refusal() == (
        f"{run.path}: cannot be read (No such file or directory); check the path and its rights",
    )
    run.path.write_text("")
    assert refusal() == (f"{run.path}: holds no line of a ledger; name the folder of a run",)
    run.start(0)
    run.path.write_text(run.path.read_text().replace('"version": 1', '"version": 2'))
    assert refusal() == (
        f"{run.path}: has version 2 of the ledger, and this ROOTS reads 1; "
        "use the ROOTS that trains the run",
    )
