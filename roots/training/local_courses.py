"""Which course a run is on, so that copies of one that it has given up are known as such.

A file beside the shared checkpoints names the run's copies, the folders below which they lie, and
the courses that led to where the run stands. Every start that goes on, and every rewind, is a
course of its own from some step; it ends where the next one begins.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from roots.files import write_atomically

MARK_FILE = "local_copies"
_NAME = re.compile(r"[0-9a-f]{16}")


def new_name() -> str:
    """A name that no other run or course has."""
    return secrets.token_hex(8)


@dataclass(frozen=True)
class Mark:
    """`courses`: names, each with the step that it begins after, oldest first."""

    name: str
    places: tuple[str, ...] = ()
    courses: tuple[tuple[str, int], ...] = ()

    @classmethod
    def read(cls, folder: Path) -> Mark | None:
        """The mark in `folder`; None if no start of the run has made copies. Raises OSError."""
        path = folder / MARK_FILE
        if not path.is_file():
            return None
        text = path.read_text(encoding="utf-8", errors="replace").strip()
        # Of a run before there were courses; it becomes the name of a folder that is removed.
        if _NAME.fullmatch(text):
            return cls(text)
        try:
            tree = json.loads(text)
            courses = tuple((str(name), int(step)) for name, step in tree["courses"])
            mark = cls(str(tree["name"]), tuple(map(str, tree["places"])), courses)
        except (ValueError, TypeError, KeyError):
            return None
        return mark if _NAME.fullmatch(mark.name) else None

    def write(self, folder: Path) -> None:
        """Raises OSError."""
        write_atomically(folder / MARK_FILE, json.dumps(asdict(self)))

    def at(self, place: str) -> Mark:
        """The mark of a run that makes copies below `place` too."""
        return self if place in self.places else replace(self, places=(*self.places, place))

    def gone_on(self, course: str, step: int) -> Mark:
        """The mark of a run that takes `course` after `step`."""
        # Of those that began there or later nothing is left.
        kept = [each for each in self.courses if each[1] < step]
        return replace(self, courses=(*kept, (course, step)))

    def leads_through(self, course: str, step: int) -> bool:
        """Whether the run has come to where it stands by `step` of `course`."""
        names = [name for name, _ in self.courses]
        if course not in names:
            return False
        return all(step <= begin for _, begin in self.courses[names.index(course) + 1 :])

    def folders(self) -> list[Path]:
        """Where copies of the run may lie on any machine."""
        return [Path(place) / f"roots-{self.name}" for place in self.places]
