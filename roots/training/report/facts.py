"""A report in words and numbers: rows for people, plain values for machines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from roots.errors import ExitCode
from roots.evaluation.likelihood import finite
from roots.training.callbacks.progress import format_duration
from roots.training.report.account import ALL_CATEGORIES, Account, Start
from roots.training.report.forecast import Forecast
from roots.training.report.read import Report

MEANINGS = {
    "compute": "in steps",
    "communication": "waiting for other ranks",
    "evaluation": "on held-out data",
    "data": "waiting for the next batch",
    "checkpoint": "waiting for saves",
    "restart": "from a process' start until it trains",
    "other": "between steps",
    "lost": "work that was done again, or ended by an error",
    "idle": "nothing ran",
}
Row = tuple[str, ...]
_NAME_WIDTH = len("forecast")


def summary_rows(report: Report) -> Iterator[Row]:
    """What a run has come to, as (name, words)."""
    yield "run", str(report.folder)
    if report.account is not None:
        yield from _account_rows(report.account)
    else:
        yield "ledger", "none: the run was trained by a ROOTS that kept no account"
    for phase in report.phases:
        yield "data", phase.describe()
    if report.metrics:
        last = report.metrics[-1]
        yield "loss", f"{last.loss:.4f} at step {last.step:,}"
    if report.evaluations:
        best = min(report.evaluations, key=lambda one: (one.loss != one.loss, one.loss))
        yield (
            "held-out",
            f"{report.evaluations[-1].loss:.4f}, best {best.loss:.4f} at step {best.step:,}",
        )
    skipped = sum(one.skipped for one in report.metrics)
    if skipped:
        yield "skipped", f"{skipped:,} steps, whose gradients were not finite"


def _account_rows(account: Account) -> Iterator[Row]:
    starts = len(account.starts)
    yield (
        "steps",
        f"{account.steps:,} in {starts} start{'s' if starts > 1 else ''}, {state(account)}",
    )
    yield "time", f"{duration(account.wall)} since {moment(account.starts[0].started)}"
    yield "goodput", f"{100 * account.goodput:.1f}%"
    if account.save_seconds is not None:
        size = "" if account.num_bytes is None else f", {account.num_bytes:,} bytes"
        cost = f"training waits {duration(account.save_seconds)} for each"
        yield "saves", f"{counted_saves(account)}, {cost}{size}"
    if account.failure_seconds is not None:
        each = f"one in {duration(account.failure_seconds)} of running"
        yield "failures", f"{account.failures:,}, {each}"
    if account.unreadable:
        yield "torn", f"{account.unreadable:,} lines of the ledger, left out"


def counted_saves(account: Account) -> str:
    """`10 (18 failed), 36 local copies`: what there was of each."""
    failed, copies = account.num_failed_saves, account.num_local_copies
    text = f"{account.num_saves:,}" + (f" ({failed:,} failed)" if failed else "")
    return text + (f", {copies:,} local cop{'y' if copies == 1 else 'ies'}" if copies else "")


def time_rows(account: Account) -> Iterator[Row]:
    """Where the time went: (category, share, time, meaning)."""
    for name in sorted(ALL_CATEGORIES, key=list(MEANINGS).index):
        if name == "communication" and not measures_communication(account):
            yield name, "-", "-", "part of compute: not measured on GPUs"
            continue
        seconds = account.seconds[name]
        share = seconds / account.wall if account.wall else 0.0
        yield name, f"{100 * share:5.1f}%", duration(seconds), MEANINGS[name]


def start_rows(account: Account) -> Iterator[Row]:
    """Every start of the run: (when, where, ranks, steps, how it ended)."""
    for number, start in enumerate(account.starts):
        last = number == len(account.starts) - 1
        steps = "-" if start.first_step is None else f"{start.first_step:,} to {start.last_step:,}"
        ended = "running" if last and account.running else ending(start)
        yield moment(start.started), start.host, start.layout or "-", steps, ended


def forecast_line(account: Account, found: Forecast | None) -> str:
    """The costs that a forecast is made of, or why there is none."""
    if found is None:
        ran = duration(account.uptime)
        why = f"no failure in {ran} of running" if not account.failures else "no save"
        return f"none: {why}, so there is no rate to forecast from"
    costs = found.costs
    return (
        f"a failure in {duration(costs.failure)} of running, {duration(costs.save)} a save, "
        f"{duration(costs.restart)} a restart after {duration(costs.idle)} idle"
        + (f", whole {duration(costs.delay)} after it" if costs.delay else "")
    )


def plan_rows(found: Forecast | None) -> Iterator[Row]:
    """The goodput to expect: (whose interval, steps between saves, their time, goodput)."""
    for plan in () if found is None else found.plans:
        steps = f"every {plan.steps:,} step{'s' if plan.steps > 1 else ''}"
        goodput = f"goodput {100 * plan.goodput:.1f}%"
        yield plan.name, steps, f"{duration(plan.seconds)} of work", goodput


def text_lines(report: Report) -> Iterator[str]:
    """The whole report for a terminal."""
    yield from _aligned(list(summary_rows(report)))
    account = report.account
    if account is None:
        return
    yield ""
    yield from _aligned(list(time_rows(account)))
    yield ""
    yield from _aligned([("start", "host", "layout", "steps", "end"), *start_rows(account)])
    yield ""
    yield f"forecast  {forecast_line(account, report.forecast)}"
    yield from _aligned(list(plan_rows(report.forecast)))


def plain(report: Report) -> dict[str, Any]:
    """The report as values for JSON; null stands for what is not known."""
    account, found = report.account, report.forecast
    tree: dict[str, Any] = {"run": str(report.folder)}
    if account is not None:
        seconds: dict[str, float | None] = dict(account.seconds)
        if not measures_communication(account):
            seconds["communication"] = None
        tree |= {
            "running": account.running,
            "steps": account.steps,
            "goodput": account.goodput,
            "wall_seconds": account.wall,
            "seconds": seconds,
            "saves": account.num_saves,
            "failed_saves": account.num_failed_saves,
            "local_copies": account.num_local_copies,
            "save_seconds": account.save_seconds,
            "checkpoint_bytes": account.num_bytes,
            "failures": account.failures,
            "failure_seconds": account.failure_seconds,
            "restart_seconds": account.restart_seconds,
            "step_seconds": account.step_seconds,
            "unreadable_lines": account.unreadable,
            "starts": [_plain_start(start) for start in account.starts],
        }
    tree["phases"] = [asdict(phase) for phase in report.phases]
    tree["forecast"] = None if found is None else asdict(found)
    last = report.metrics[-1] if report.metrics else None
    tree["loss"] = None if last is None else finite(last.loss)
    held_out = report.evaluations[-1] if report.evaluations else None
    tree["held_out_loss"] = None if held_out is None else finite(held_out.loss)
    return tree


def _plain_start(start: Start) -> dict[str, Any]:
    tree = asdict(start)
    del tree["course"]
    return {**tree, "saves": len(start.saves), "failed": start.failed}


def measures_communication(account: Account) -> bool:
    """Whether any start told waiting in collectives apart from computing."""
    return any(start.communication for start in account.starts)


def state(account: Account) -> str:
    """How a run stands."""
    return "running" if account.running else ending(account.starts[-1])


def ending(start: Start) -> str:
    """How a process ended."""
    if start.code is None:
        return "died"
    meaning = "interrupted" if start.code == ExitCode.INTERRUPTED else f"code {start.code}"
    meaning += f", {start.cause}" if start.cause else ""
    return "done" if start.code == ExitCode.DONE else meaning


def duration(seconds: float) -> str:
    """Seconds for people: with decimals below a minute."""
    return f"{seconds:.3g} s" if seconds < 59.95 else format_duration(seconds)


def moment(time: float) -> str:
    """A time of this machine's zone."""
    return datetime.fromtimestamp(time).astimezone().isoformat(sep=" ", timespec="seconds")


def _aligned(rows: Sequence[Row]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows)] or [0]
    widths[0] = max(widths[0], _NAME_WIDTH)
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
