"""Files of events beside the metrics: one JSON object a line, of the course that the run is on.

An event stays although a run goes back behind it in memory, as it does for a rewind: it is what
happened on the way. What lies behind the checkpoint that a start goes on from belongs to a course
that was given up, and goes as the records of those steps do (callbacks/record_file.py). A file that
cannot be written is no reason to end a run: its lines wait.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roots.training.callbacks.record_file import RecordFile

if TYPE_CHECKING:
    from roots.data.sampler import SampleRange

ANOMALIES_FILE = "anomalies.jsonl"
RANK_TIMES_FILE = "rank_times.jsonl"


class EventLog:
    """Appends to one file; None as its path, for ranks that do not write, swallows everything."""

    def __init__(
        self, path: Path | None, start: int = 0, jumped_over: Sequence[SampleRange] = ()
    ) -> None:
        """Of a run that goes on after `start` steps and has `jumped_over` these samples by then.

        Raises RootsError where the file cannot be written or holds something else.
        """
        samples = [[first, end - 1] for first, end in jumped_over]

        def belongs(step: int, line: bytes) -> bool:
            # A step that the run went back behind may have had a higher number.
            return step <= start or json.loads(line).get("samples") in samples

        self._file = None if path is None else RecordFile(path, start, belongs, at_once=False)

    def write(self, step: int, **fields: Any) -> None:
        """Append one line; numbers that are not finite become null."""
        if self._file is not None:
            self._file.append(step, {"step": step, **fields})

    def begin(self) -> None:
        """The run has made a step: it is on a course of its own from here."""
        if self._file is not None:
            self._file.begin()

    def close(self) -> None:
        """Close the file; tells of lines that never got into it."""
        if self._file is not None:
            self._file.close()
