"""What an error of the system is: which code a run ends with, and what to do about it."""

from __future__ import annotations

import errno
import os

import pytest

from roots.errors import ExitCode, code_of, cure_of

ROOM = "free some disk space"
RIGHTS = "give this user the rights to it"
WRITABLE = "make its file system writable"


@pytest.mark.parametrize(
    ("number", "cure", "code"),
    [
        (errno.ENOSPC, ROOM, ExitCode.NOT_SAVED),
        (errno.EDQUOT, f"{ROOM}, or raise the quota", ExitCode.NOT_SAVED),
        (errno.EROFS, WRITABLE, ExitCode.BAD_INPUT),
        (errno.EACCES, RIGHTS, ExitCode.BAD_INPUT),
        (errno.EPERM, RIGHTS, ExitCode.BAD_INPUT),
        (errno.EFBIG, "raise the limit on the size of a file (ulimit -f)", ExitCode.BAD_INPUT),
        (errno.EIO, "check the path and its disk", ExitCode.BAD_INPUT),
        (None, "check the path and its disk", ExitCode.BAD_INPUT),
    ],
)
def test_the_number_decides_the_cure_and_the_code(
    number: int | None, cure: str, code: ExitCode
) -> None:
    error = OSError("something else") if number is None else OSError(number, os.strerror(number))
    assert cure_of(error) == cure
    assert code_of(error) is code
