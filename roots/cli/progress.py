"""How far a command has come: a bar on a terminal, a line now and then anywhere else.

It goes to stderr, so that what a command prints, `--json` above all, can be read by a program.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from roots.log import console_of

# Work that is done sooner needs no line.
SECONDS_BETWEEN_LINES = 20.0


@contextmanager
def shown(
    title: str, console: Console | None = None, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[int, int], None]]:
    """Show how much of something is done: what is yielded is called as (done, total)."""
    console = console_of(sys.stderr) if console is None else console
    if not console.is_terminal:
        yield _lines(title, console, clock)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _lines(title: str, console: Console, clock: Callable[[], float]) -> Callable[[int, int], None]:
    last = [clock()]

    def report(done: int, total: int) -> None:
        if clock() - last[0] >= SECONDS_BETWEEN_LINES and done < total:
            last[0] = clock()
            console.print(f"{title}: {100 * done // max(1, total)}%", soft_wrap=True)

    return report
