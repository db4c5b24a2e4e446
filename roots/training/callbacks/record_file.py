"""A file of JSON lines, each about a step, of the course that a run is on.

Each line is written and flushed whole, as UTF-8, and begins with its `step`. A run that died after
writing lines but before its next checkpoint makes those steps again, and the lines of them that are
in the file are of a course that is given up. They are cut off when the run has made its first step,
and not before: a start that ends without one has changed nothing, and the next may go on from later
(a copy on its machine, which a start of another layout passes by). Lines are in the order of time,
so the file is read from its end to the last line to keep. A last line that a crash left torn goes
too; anything else that is no record is an error that names the line. A line that finds no room on
the disk leaves no part of itself behind: it waits in memory, with those after it, until they can be
written.
"""

from __future__ import annotations

import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from roots.errors import RootsError, code_of, cure_of, problem
from roots.evaluation.likelihood import finite
from roots.files import append_whole
from roots.log import get_logger

# Lines that are kept while the disk does not take them, some megabytes; the oldest go first.
MOST_WAITING = 10_000
Value = float | int | bool | str | None | list[int] | list[float]
# Whether a line of some step is to be kept.
Belongs = Callable[[int, bytes], bool]

_LOGGER = get_logger("training.metrics")
_BLOCK_BYTES = 1 << 20
_UNWRITTEN = (
    "%s: cannot be written (%s); training goes on, and records wait in memory until it can be; %s"
)
# How a line begins as it is written here; others are parsed.
_STEP = re.compile(rb'\{"step": (\d+)[,}]')


class RecordFile:
    """Appends lines to the file at `path` of a run that goes on after `start` steps (0: afresh).

    `belongs`: which lines are of its course, by default those of steps up to `start`. `at_once`:
    make a file that is not there yet, and not only for its first line. Raises RootsError when the
    file holds something else than records or cannot be written.
    """

    def __init__(
        self,
        path: Path,
        start: int = 0,
        belongs: Belongs | None = None,
        *,
        at_once: bool = True,
    ) -> None:
        self.path = path
        self._start = start
        self._file: FileIO | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._end, self._left = _place_after(path, belongs or _up_to(start))
            if at_once or path.exists():
                self._open()
        except OSError as error:
            raise unusable(path, error, cure_of(error)) from error
        self._waiting: deque[bytes] = deque(maxlen=MOST_WAITING)
        self._told, self._lost = False, 0
        # Where no other course has left anything, nothing is to be waited for.
        self._begun = self._left == 0

    def append(self, step: int, fields: Mapping[str, Value]) -> None:
        """Append one line and hand it to the operating system, after those that still wait.

        Where that has no room or fails, the file ends with the line before, and the lines wait; so
        they do until `begin` where they are of no step of this start. Numbers that are not finite
        become null.
        """
        values = {
            name: finite(value) if isinstance(value, float) else value
            for name, value in fields.items()
        }
        self._lost += len(self._waiting) == self._waiting.maxlen
        self._waiting.append(json.dumps(values, allow_nan=False).encode() + b"\n")
        if step > self._start:
            self.begin()
        if self._begun:
            with self._told_once():
                self._flush()

    def begin(self) -> None:
        """The run has made a step; what another course has left behind is cut off, once."""
        if self._begun:
            return
        self._begun = True
        with self._told_once():
            self._cut()
            _LOGGER.info("%s: dropped %d records after step %d", self.path, self._left, self._start)
            self._flush()

    def drop_after(self, step: int) -> None:
        """Drop the records of later steps: the run has gone back, and will make them again."""
        with self._told_once():
            # Those that wait follow what is in the file.
            while self._waiting and (_step_of(self._waiting[-1]) or 0) > step:
                self._waiting.pop()
            self._end, _ = _place_after(self.path, _up_to(step))
            self._cut()

    def sync(self) -> None:
        """Make what was written survive a power cut; called where a checkpoint becomes final."""
        with self._told_once():
            os.fsync(self._open().fileno())

    def close(self) -> None:
        """Close the file; a second call does nothing. Tells how many records never got into it.

        What is of no step of a start that has made none is made again by the next.
        """
        lost = self._lost + len(self._waiting)
        if self._waiting and self._begun:
            _LOGGER.warning("%s: %d records were not written", self.path, lost)
        self._waiting.clear()
        with suppress(OSError):
            if self._file is not None:
                self._file.close()

    def _open(self) -> FileIO:
        if self._file is None:
            self._file = self.path.open("ab", buffering=0)
        return self._file

    def _flush(self) -> None:
        while self._waiting:
            self._end = append_whole(self._open(), self._waiting[0], self._end)
            self._waiting.popleft()

    def _cut(self) -> None:
        file = self._open()
        if os.fstat(file.fileno()).st_size > self._end:
            file.truncate(self._end)
            os.fsync(file.fileno())

    @contextmanager
    def _told_once(self) -> Iterator[None]:
        """Make an OSError a warning, the first of several; tell when it is over."""
        try:
            yield
        except OSError as error:
            if not self._told:
                _LOGGER.warning(_UNWRITTEN, self.path, error.strerror or error, cure_of(error))
            self._told = True
            return
        if self._told and not self._waiting:
            without = f", without {self._lost} records" if self._lost else ""
            _LOGGER.warning("%s: is written again%s", self.path, without)
            self._told, self._lost = False, 0


def _up_to(last_step: int) -> Belongs:
    return lambda step, line: step <= last_step


def _place_after(path: Path, belongs: Belongs) -> tuple[int, int]:
    """Where the last line ends that `belongs`, and how many records come after it."""
    if not path.exists():
        return 0, 0
    later = 0
    for start, line in _lines_backwards(path):
        whole = line.endswith(b"\n")
        step = _step_of(line)
        if step is None and whole:
            raise broken(path, _line_number(path, start), fault_of(line))
        if step is not None and belongs(step, line):
            if not whole:
                with path.open("ab") as file:
                    file.write(b"\n")
            return start + len(line) + (not whole), later
        later += step is not None
    return 0, later


def _lines_backwards(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, line) from the last line to the first, reading as much as is asked for."""
    with path.open("rb") as file:
        position = file.seek(0, os.SEEK_END)
        rest = b""
        while position > 0:
            size = min(_BLOCK_BYTES, position)
            position -= size
            file.seek(position)
            first, *lines = (file.read(size) + rest).splitlines(keepends=True)
            offset = position + len(first) + sum(map(len, lines))
            for line in reversed(lines):
                offset -= len(line)
                yield offset, line
            rest = first
        if rest:
            yield 0, rest


def _step_of(line: bytes) -> int | None:
    """The step of a record's line, None for any other line."""
    match = _STEP.match(line) if line.endswith(b"}\n") else None
    if match:
        return int(match.group(1))
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError):
        return None
    return step if isinstance(step, int) else None


def fault_of(line: bytes) -> str:
    """What is wrong with a line that is no record."""
    try:
        json.loads(line)
    except ValueError:
        return "is no JSON"
    return "is no object with an integer 'step'"


def _line_number(path: Path, offset: int) -> int:
    """Which line begins at `offset`, counted from 1."""
    with path.open("rb") as file:
        return file.read(offset).count(b"\n") + 1


def broken(path: Path, number: int, what: str) -> RootsError:
    """The error of a file whose line `number` is no record."""
    return RootsError(
        problem(f"{path}, line {number}", None, what, "repair that line or move the file away")
    )


def unusable(path: Path, error: OSError, fix: str) -> RootsError:
    """The error of a file that cannot be opened."""
    line = problem(str(path), None, f"cannot be used ({error.strerror or error})", fix)
    return RootsError(line, exit_code=code_of(error))
