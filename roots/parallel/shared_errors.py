"""Running a step on all ranks so that one rank's error becomes everyone's, instead of a hang."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from roots.errors import RootsError, code_of, cure_of, problem
from roots.parallel.mesh import Axis
from roots.parallel.process import all_gather_object, anywhere

T = TypeVar("T")


def together(axis: Axis, action: Callable[[], T]) -> T:
    """Call `action` on every rank of `axis`; return its result on each.

    If any rank raises RootsError, every rank raises one with the lines of all, each line once; only
    rank 0 speaks. An OSError (a full disk, a folder without permission) counts as a user's error,
    with the exit code of errors.code_of. Any other exception is a bug and passes as it is.
    Communication: one all-reduce of a number, and if a rank fails an all-gather of the lines.
    """
    failure: RootsError | None = None
    result: T | None = None
    try:
        result = action()
    except RootsError as error:
        failure = error
    except OSError as error:
        rule = f"cannot be used ({error.strerror or error})"
        line = problem(str(error.filename or "file system"), None, rule, cure_of(error))
        failure = RootsError(line, exit_code=code_of(error))
    if not anywhere(axis, failure is not None):
        return result  # type: ignore[return-value]  # no failure, so action has returned a T
    reports = all_gather_object(
        axis, None if failure is None else (failure.lines, failure.exit_code)
    )
    raised = [report for report in reports if report is not None]
    lines = dict.fromkeys(line for found, _ in raised for line in found)
    raise RootsError(*lines, exit_code=raised[0][1], speaks=axis.rank == 0) from failure
