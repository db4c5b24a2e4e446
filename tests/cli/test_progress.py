"""Progress of commands: a bar on a terminal, lines now and then elsewhere, never on stdout."""

from __future__ import annotations

import io

from rich.console import Console

from roots.cli.progress import SECONDS_BETWEEN_LINES, shown


def test_lines_come_now_and_then_where_there_is_no_terminal() -> None:
    out, now = io.StringIO(), [0.0]
    with shown("exporting", Console(file=out), lambda: now[0]) as report:
        for done in range(1, 11):
            report(done, 10)
            now[0] += SECONDS_BETWEEN_LINES / 2
    assert out.getvalue().splitlines() == [f"exporting: {n}%" for n in (30, 50, 70, 90)]
    assert "\x1b" not in out.getvalue()


def test_quick_work_says_nothing() -> None:
    out = io.StringIO()
    with shown("exporting", Console(file=out), lambda: 0.0) as report:
        report(1, 1)
    assert out.getvalue() == ""


def test_terminal_gets_a_bar_that_goes_away() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=60)
    with shown("exporting", console) as report:
        report(3, 4)
    assert "exporting" in out.getvalue()
    assert "75%" in out.getvalue()
