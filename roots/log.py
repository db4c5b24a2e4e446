"""Logging of all ranks: rank 0 speaks, the others only warn."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable

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


@functools.cache
def log_once(logger: logging.Logger, message: str) -> None:
    """Log `message` at INFO the first time this process says it."""
    logger.info(message)
