"""Logging of all ranks: rank 0 speaks, the others only warn."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

# How far work has come: called as (done, total), of whatever it counts.
Report = Callable[[int, int], None]


def silent(done: int, total: int) -> None:
    """The report of work that nobody watches."""


def get_logger(name: str) -> logging.Logger:
    """Return the logger `roots.<name>`."""
    return logging.getLogger(name if name.startswith("roots") else f"roots.{name}")


def configure(level: int = logging.INFO, rank: int = 0) -> None:
    """Send the lines of `roots` to stderr: of rank 0 at `level`, of the others warnings only."""
    logger = logging.getLogger("roots")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    handler = logging.StreamHandler(sys.stderr)
    prefix = "" if rank == 0 else f"[rank {rank}] "
    handler.setFormatter(logging.Formatter(f"{prefix}%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(level if rank == 0 else max(level, logging.WARNING))
    logger.propagate = False


def let_go_of_output() -> None:
    """Flush stdout and stderr for the last time; what they do not take is lost.

    Python would flush them as it ends, and end with a code of its own (120) where that fails.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def console_of(stream: TextIO, forwarded: bool = False, **options: Any) -> Console:
    """A console that writes to `stream`; a terminal, where lines may be written over, or none.

    The one place that decides it: a file, a pipe, what a launcher passes on (`forwarded`) and a
    terminal that knows no control characters get none, whatever variables tell rich.
    """
    from rich.console import Console

    is_terminal = not forwarded and stream.isatty()
    if is_terminal and Console(file=stream, force_terminal=True).is_dumb_terminal:
        is_terminal = False
    return Console(file=stream, force_terminal=is_terminal, highlight=False, **options)


@functools.cache
def log_once(logger: logging.Logger, message: str) -> None:
    """Log `message` at INFO the first time this process says it."""
    logger.info(message)
