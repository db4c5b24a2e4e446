"""Errors a user can cause, and the exit codes that report them."""

from __future__ import annotations

import errno
import re
from enum import IntEnum


class ExitCode(IntEnum):
    """What the process tells its launcher, and its `meaning` in words."""

    meaning: str

    def __new__(cls, number: int, meaning: str = "") -> ExitCode:
        """A number that knows what it means."""
        code = int.__new__(cls, number)
        code._value_ = number
        code.meaning = meaning
        return code

    DONE = 0, "done"
    BUG = 1, "a bug of ROOTS, or a rank that was killed before the others could tell"
    BAD_INPUT = 2, "bad input: config, data, checkpoint or machine; the message says what to change"
    INTERRUPTED = 3, "interrupted after a good checkpoint, or before there was anything to save"
    DIVERGED = 4, "the training diverged"
    DIFFERENT = 5, "`roots verify`: the layout does not compute what one process does"
    NOT_SAVED = (
        6,
        "done or interrupted, but the disk did not take the work since the last checkpoint; "
        "or it was full when the run was to begin",
    )
    LOST = 7, "a rank died or hung; the same command goes on from the last checkpoint"
    FAULTY = (
        8,
        "a machine computes wrongly: ranks that hold the same differ, or a gradient computed twice",
    )
    ENDED_AT_ONCE = (
        130,
        "ended at once by the keyboard (Ctrl-C), and what was not finished is not kept; "
        "`roots train` takes the first for a request to save, and the second for this",
    )


def code_of(error: OSError) -> ExitCode:
    """NOT_SAVED where a disk or a quota is full, which may pass by itself; else BAD_INPUT."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return ExitCode.NOT_SAVED if full else ExitCode.BAD_INPUT


def cure_of(error: OSError) -> str:
    """What to do about a file, or the place of one, that `error` keeps from being used."""
    match error.errno:
        case errno.ENOSPC:
            return "free some disk space"
        case errno.EDQUOT:
            return "free some disk space, or raise the quota"
        case errno.EROFS:
            return "make its file system writable"
        case errno.EACCES | errno.EPERM:
            return "give this user the rights to it"
        case errno.EFBIG:
            return "raise the limit on the size of a file (ulimit -f)"
    return "check the path and its disk"


class RootsError(Exception):
    """A mistake in the input, told in one line each: what, its value, the rule and the fix.

    `lines` holds every problem that was found, so that a user sees all of them at once.
    `speaks` is False on a rank whose error another rank already reports.
    """

    def __init__(
        self, *lines: str, exit_code: ExitCode = ExitCode.BAD_INPUT, speaks: bool = True
    ) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines
        self.exit_code = exit_code
        self.speaks = speaks

    def __reduce__(self) -> tuple[object, ...]:
        """Keep lines and exit code when the error crosses a process boundary."""
        return (_rebuild, (self.lines, int(self.exit_code)))


def _rebuild(lines: tuple[str, ...], exit_code: int) -> RootsError:
    return RootsError(*lines, exit_code=ExitCode(exit_code))


def problem(subject: str, value: object, rule: str, fix: str) -> str:
    """Compose the one line of an error: `subject=value: rule; fix`.

    `subject` is a dotted config path, a file or a tensor. `value` None is left out.
    """
    shown = "" if value is None else f"={value!r}"
    return f"{subject}{shown}: {rule}; {fix}"


_NO_MEMORY = re.compile(
    "out of memory|can't allocate memory|cannot allocate memory|alloc_failed|bad_alloc",
    re.IGNORECASE,
)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether memory of the host or of a GPU was not enough, whichever library says so.

    Python and numpy raise MemoryError, torch a RuntimeError that only its text tells apart from
    others, the system an OSError of its own number.
    """
    if isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno == errno.ENOMEM
    ):
        return True
    return not isinstance(error, RootsError) and _NO_MEMORY.search(str(error)) is not None
