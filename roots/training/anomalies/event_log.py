"""Files of events beside the metrics: one JSON object a line, appended and never cut.

An event is what happened, so it stays although a run goes back behind it. A file that cannot be
written is no reason to end a run: it is left alone from then on, with a warning.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from roots.evaluation.likelihood import finite
from roots.log import get_logger

ANOMALIES_FILE = "anomalies.jsonl"
RANK_TIMES_FILE = "rank_times.jsonl"

_logger = get_logger(__name__)


class EventLog:
    """Appends to one file; None as its path, for ranks that do not write, swallows everything."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def write(self, **fields: Any) -> None:
        """Append one line; numbers that are not finite become null."""
        if self._path is None:
            return
        values = {
            name: finite(value) if isinstance(value, float) else value
            for name, value in fields.items()
        }
        try:
            with self._path.open("ab") as file:
                file.write(json.dumps(values, allow_nan=False).encode() + b"\n")
        except OSError as error:
            reason = error.strerror or error
            _logger.warning("%s cannot be written (%s) and is left out", self._path, reason)
            self._path = None
