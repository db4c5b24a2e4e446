"""Whether a command printed what its page says, with numbers that may differ a little."""

from __future__ import annotations

import re
from collections.abc import Sequence

ANY_LINES = "..."
# Share by which a number with a decimal point may differ: rounding of another processor or torch,
# over the steps of a small training.
TOLERANCE = 0.05

_NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?![\w])")


def matches(expected: Sequence[str], printed: Sequence[str], *, varies: bool = False) -> bool:
    """Whether `printed` is `expected`, in which `...` stands for any lines.

    Whole numbers are equal and others within TOLERANCE; with `varies` a number is any number.
    """
    if not expected:
        return not printed
    first, rest = expected[0], expected[1:]
    if first.strip() == ANY_LINES:
        return any(
            matches(rest, printed[start:], varies=varies) for start in range(len(printed) + 1)
        )
    if not printed or not same_line(first, printed[0], varies=varies):
        return False
    return matches(rest, printed[1:], varies=varies)


def same_line(expected: str, printed: str, *, varies: bool = False) -> bool:
    """Whether two lines are equal up to their numbers and the width of white space."""
    if expected == printed:
        return True
    if _words(expected) != _words(printed):
        return False
    pairs = zip(_NUMBER.findall(expected), _NUMBER.findall(printed), strict=True)
    return varies or all(_near(one, other) for one, other in pairs)


def _words(line: str) -> str:
    return " ".join(_NUMBER.sub("#", line).split())


def _near(one: str, other: str) -> bool:
    if not {".", "e"} & {*one, *other}:
        return one == other
    first, second = (float(text.replace(",", "")) for text in (one, other))
    return abs(first - second) <= TOLERANCE * max(abs(first), abs(second))
