"""A contract: one behaviour of DeepSpeed or torch, observed without ROOTS, that ROOTS relies on.

What is expected is data. Where versions differ there is one value for each range of versions, and
a version newer than all is held to the newest value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

Version = tuple[int, ...]
Since = Mapping[str, Any]


@dataclass(frozen=True)
class Place:
    """Where an observation is made: this rank of `ranks`, and a folder of this observation alone.

    All ranks see the same folder.
    """

    rank: int
    ranks: int
    folder: Path


@dataclass(frozen=True)
class Contract:
    """`observe` shows the behaviour as a value of JSON; `statement` says it in words.

    of:         "deepspeed" or "torch", whose version decides what is expected
    since:      the value from a version on; "" is the first
    relied_on:  files of ROOTS that are written for it
    ranks:      processes that it takes to see it
    """

    name: str
    statement: str
    of: str
    since: Since
    relied_on: tuple[str, ...]
    ranks: int
    observe: Callable[[Place], Any]

    def expected(self, version: str) -> Any:
        """What `version` is held to."""
        return value_of(self.since, version)

    def words(self) -> dict[str, Any]:
        """What people read of it, as JSON."""
        return {
            "statement": self.statement,
            "of": self.of,
            "since": dict(self.since),
            "relied_on": list(self.relied_on),
        }


def value_of(since: Since, version: str) -> Any:
    """The value of the newest entry that is not newer than `version`."""
    held = [each for each in since if numbers(each) <= numbers(version)]
    return since[max(held, key=numbers)]


def numbers(version: str) -> Version:
    """`0.19.8`, `2.13.0+cpu` and `2.16.0a1` as numbers that compare; the empty string is first."""
    return tuple(int(each) for each in re.findall(r"\d+", version.partition("+")[0])[:3])


def contract(
    expected: Any = None,
    *,
    relied_on: str,
    since: Since | None = None,
    of: str = "deepspeed",
    ranks: int = 1,
) -> Callable[[Callable[[Place], Any]], Contract]:
    """Make a Contract of the function below it, whose docstring is the statement.

    `expected` holds for all versions, `since` for some; `relied_on` are files, separated by blanks.
    """

    def make(observe: Callable[[Place], Any]) -> Contract:
        statement = " ".join((observe.__doc__ or "").split())
        values = {"": expected} if since is None else since
        files = tuple(relied_on.split())
        return Contract(observe.__name__, statement, of, values, files, ranks, observe)

    return make


def contracts_of(modules: list[ModuleType]) -> list[Contract]:
    """All contracts of the modules, in the order in which they are written."""
    return [each for module in modules for each in vars(module).values() if type(each) is Contract]
