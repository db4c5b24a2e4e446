"""Who says the line about rank 0, which can no longer: a file of the run, RUN/stacks/speaker.

Ranks that have lost rank 0 have no connection to each other. Each notes in the file that it is
there, and the first to take the word there has it, whoever else is gone. Notes of starts before
this one do not count: they are older than this process.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FILE = "speaker"


class Speaker:
    """What one rank does with the file in `folder`. Every method may raise OSError."""

    def __init__(self, folder: Path, rank: int, host: str, since: float) -> None:
        """`since`: when this process began, in seconds since the epoch."""
        self._path = folder / FILE
        self._mine = {"rank": rank, "host": host}
        self._since = since

    def note(self) -> None:
        """Tell whoever will speak that this rank is there."""
        with self._notes() as (notes, add):
            if not any(each["rank"] == self._mine["rank"] for each in notes):
                add(speaks=False)

    def here(self) -> dict[int, str]:
        """The ranks that have told so, with their hosts."""
        with self._notes() as (notes, _):
            return {int(each["rank"]): str(each["host"]) for each in notes}

    def is_taken(self) -> bool:
        """Whether a rank has the word, so that this start is over."""
        if not self._path.exists():
            return False
        with self._notes() as (notes, _):
            return any(each["speaks"] for each in notes)

    def take_the_word(self) -> bool:
        """Whether nobody has before, so that this rank speaks."""
        with self._notes() as (notes, add):
            taken = any(each["speaks"] for each in notes)
            if not taken:
                add(speaks=True)
            return not taken

    @contextmanager
    def _notes(self) -> Iterator[tuple[list[dict[str, Any]], Any]]:
        """The notes of this start, and a function that adds one of this rank, under a lock."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "a+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            notes = [json.loads(line) for line in file if line.endswith("\n")]
            fresh = [each for each in notes if each["time"] >= self._since]

            def add(speaks: bool) -> None:
                if not fresh:
                    file.truncate(0)
                note = {**self._mine, "speaks": speaks, "time": time.time()}
                file.write(json.dumps(note) + "\n")
                file.flush()
                os.fsync(file.fileno())

            yield fresh, add
