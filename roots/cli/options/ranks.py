"""Commands that were started on several processes: who speaks of them, and which refuse it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from roots.errors import RootsError, problem


def speaks() -> bool:
    """Whether this process tells what every one of them finds by itself."""
    from roots.device import launch_environment

    return launch_environment().rank == 0


@contextmanager
def told_once() -> Iterator[None]:
    """Of an error that every process finds by itself, only the first one tells."""
    try:
        yield
    except RootsError as error:
        raise RootsError(*error.lines, exit_code=error.exit_code, speaks=speaks()) from error


def refuse_ranks(does: str) -> None:
    """Raise RootsError under several processes. `does`: what one process alone does."""
    from roots.device import launch_environment

    ranks = launch_environment().world_size
    if ranks > 1:
        rule, fix = f"is more than the one process that {does}", "start it without a launcher"
        raise RootsError(problem("processes", ranks, rule, fix), speaks=speaks())
