"""The records of a run: metrics.jsonl (one a step), evaluations.jsonl (one an evaluation) and
checkpoints.jsonl (one a checkpoint that became whole).

Format: UTF-8 text, one JSON object a line, each line written and flushed whole. `step` counts
finished updates, so the first record has step 1 and a checkpoint of step k holds records 1..k.
JSON has no NaN and no infinity: a value that is not finite is written as null, whatever the kind,
and read back as NaN. (`skipped` tells an fp16 overflow apart from a model that broke.)

A run that died after writing records but before its next checkpoint repeats those steps. So the
writer, opened with the step it resumes from, first drops every later record: steps never fall from
line to line, so it reads the file from its end to the last line to keep, and cuts it there. A last
line that a crash left torn is dropped too; anything else that is no record is an error that names
the line. A line that finds no room on the disk leaves no part of itself behind: it waits in memory,
with those after it, until they can be written.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from roots.errors import RootsError, code_of, problem
from roots.evaluation.likelihood import finite, perplexity_of
from roots.files import append_whole
from roots.log import get_logger

METRICS_FILE = "metrics.jsonl"
EVALUATIONS_FILE = "evaluations.jsonl"
CHECKPOINTS_FILE = "checkpoints.jsonl"
# Lines that are kept while the disk does not take them, some megabytes; the oldest go first.
MOST_WAITING = 10_000

_LOGGER = get_logger("training.metrics")
_BLOCK_BYTES = 1 << 20
_UNWRITTEN = (
    "%s: cannot be written (%s); training goes on, and records wait in memory until it can be; "
    "check the room and the quota of that disk and the rights"
)
# How a line begins as it is written here; others are parsed.
_STEP = re.compile(rb'\{"step": (\d+)[,}]')


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step, over all ranks. Written field by field, in this order.

    `consumed_tokens` counts samples at their full length, as schedules in tokens do;
    `tokens_per_second` counts the tokens of the step's rows as they were padded (of targets alone
    in an encoder-decoder), which data.pad_multiple makes fewer. `tflops` is achieved model TFLOP/s
    of one device, `mfu` a share of 1 (planner/flops.py), both of the rows as they were padded,
    `memory_bytes` the peak of the rank that needs most. `loss` is the mean over the global batch,
    `grad_norm` the global norm before clipping; both may be NaN or infinite in a skipped step.
    `overflow` names the first parameter whose gradient was not finite, and its rank, "" if all
    were (and in records of before there was the field). `anomaly` says what was bad in a step that
    was skipped for it (engine/step.py StepResult), and is left out elsewhere. The fields
    `expert_...` are those of router_statistics.py ExpertLoad; a dense model has none, and its lines
    leave them out.
    """

    step: int
    consumed_samples: int
    consumed_tokens: int
    loss: float
    lr: float
    grad_norm: float
    loss_scale: float
    skipped: bool
    step_seconds: float
    tokens_per_second: float
    tflops: float
    mfu: float
    memory_bytes: int
    overflow: str = ""
    expert_max_load: float | None = None
    expert_mean_max_load: float | None = None
    expert_min_load: float | None = None
    expert_dropped: float | None = None
    expert_balance_loss: float | None = None
    expert_z_loss: float | None = None
    anomaly: str | None = None

    def values(self) -> dict[str, float | int | bool | str]:
        """What is known, by name."""
        return _known(self)


@dataclass(frozen=True)
class EvaluationRecord:
    """Held-out loss after `step` updates (0: before the first), and its exponential."""

    step: int
    loss: float
    perplexity: float

    @classmethod
    def of(cls, step: int, loss: float) -> EvaluationRecord:
        """Make the record of a loss in nats a token."""
        return cls(step, loss, perplexity_of(loss))


@dataclass(frozen=True)
class SaveRecord:
    """One checkpoint, of `bytes` in all files that ranks wrote.

    Training waited for `stall_seconds` on rank 0; writing took `write_seconds` on the slowest rank,
    beside training or not. `disk_share` is how fast rank 0 wrote its part, as a share of what the
    disk took of one file of plain bytes (checkpoint/disk_rate.py); None where that is not known.
    """

    step: int
    bytes: int
    stall_seconds: float
    write_seconds: float
    disk_share: float | None = None

    @property
    def gigabytes_per_second(self) -> float:
        """All that was written, by the seconds of the slowest rank; in 10^9 bytes."""
        return self.bytes / 1e9 / self.write_seconds if self.write_seconds > 0 else math.nan

    def values(self) -> dict[str, float | int | bool | str]:
        """What is known, by name, with the rate."""
        return {**_known(self), "gigabytes_per_second": self.gigabytes_per_second}


AnyRecord = StepRecord | EvaluationRecord | SaveRecord
Record = TypeVar("Record", StepRecord, EvaluationRecord, SaveRecord)


class RecordWriter:
    """Appends records to a JSON-lines file of a run that starts from `resume_step` (0: afresh).

    Records of later steps are dropped when the file is opened. Raises RootsError when it holds
    something else than records or cannot be written.
    """

    def __init__(self, path: Path, resume_step: int = 0) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            dropped = _drop_after(path, resume_step)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise _unusable(path, error) from error
        self._end = os.fstat(self._file.fileno()).st_size
        self._waiting: deque[bytes] = deque(maxlen=MOST_WAITING)
        self._told, self._lost = False, 0
        if dropped:
            _LOGGER.info("%s: dropped %d records after step %d", path, dropped, resume_step)

    def write(self, record: AnyRecord) -> None:
        """Append one line and hand it to the operating system, after those that still wait.

        Where that has no room or fails, the file ends with the line before, and the lines wait.
        """
        fields = {name: _json_value(value) for name, value in _written(record).items()}
        self._lost += len(self._waiting) == self._waiting.maxlen
        self._waiting.append(json.dumps(fields, allow_nan=False).encode() + b"\n")
        with self._told_once():
            while self._waiting:
                self._end = append_whole(self._file, self._waiting[0], self._end)
                self._waiting.popleft()

    def drop_after(self, step: int) -> None:
        """Drop the records of later steps: the run has gone back, and will make them again."""
        with self._told_once():
            # Those that wait follow what is in the file.
            while self._waiting and (_step_of(self._waiting[-1]) or 0) > step:
                self._waiting.pop()
            _drop_after(self.path, step)
            self._end = os.fstat(self._file.fileno()).st_size

    def sync(self) -> None:
        """Make what was written survive a power cut; called where a checkpoint becomes final."""
        with self._told_once():
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; a second call does nothing. Tells how many records never got into it."""
        lost = self._lost + len(self._waiting)
        if self._waiting:
            _LOGGER.warning("%s: %d records were not written", self.path, lost)
            self._waiting.clear()
        with suppress(OSError):
            self._file.close()

    @contextmanager
    def _told_once(self) -> Iterator[None]:
        """Make an OSError a warning, the first of several; tell when it is over."""
        try:
            yield
        except OSError as error:
            if not self._told:
                _LOGGER.warning(_UNWRITTEN, self.path, error.strerror or error)
            self._told = True
            return
        if self._told and not self._waiting:
            without = f", without {self._lost} records" if self._lost else ""
            _LOGGER.warning("%s: is written again%s", self.path, without)
            self._told, self._lost = False, 0


class MetricsWriter(RecordWriter):
    """Writes `metrics.jsonl`: one StepRecord a line."""


class EvaluationWriter(RecordWriter):
    """Writes `evaluations.jsonl`: one EvaluationRecord a line.

    An evaluation at step 0 precedes the first update, so a run from scratch drops it as well.
    """

    def __init__(self, path: Path, resume_step: int = 0) -> None:
        super().__init__(path, resume_step if resume_step > 0 else -1)


class SaveWriter(RecordWriter):
    """Writes `checkpoints.jsonl`: one SaveRecord a line, with its rate."""


def read_metrics(path: Path) -> list[StepRecord]:
    """Read all step records of a file. A torn last line is left out.

    Raises RootsError for a missing file, and naming the line for anything else that is no record.
    """
    return list(_records(path, StepRecord))


def read_evaluations(path: Path) -> list[EvaluationRecord]:
    """Read all evaluation records of a file, like `read_metrics`."""
    return list(_records(path, EvaluationRecord))


def read_saves(path: Path) -> list[SaveRecord]:
    """Read all records of saves of a file, like `read_metrics`."""
    return list(_records(path, SaveRecord))


def _records(path: Path, kind: type[Record]) -> Iterator[Record]:
    """Yield the records of `path`; unknown keys are skipped, missing ones, if not new, errors."""
    fields = dataclasses.fields(kind)
    required = [field.name for field in fields if field.default is dataclasses.MISSING]
    names = [field.name for field in fields]
    try:
        for number, values in _objects(path):
            missing = [name for name in required if name not in values]
            if missing:
                raise _broken(path, number, f"has no field {missing[0]!r}")
            # null stands for a number that was not finite; no field is null otherwise.
            found: dict[str, Any] = {
                name: math.nan if values[name] is None else values[name]
                for name in names
                if name in values
            }
            yield kind(**found)
    except OSError as error:
        raise _unusable(path, error) from error


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number and parsed object of every whole record line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                values = json.loads(line)
            except ValueError:
                # Only the last line of a file can lack its end: a write that was cut short.
                if not line.endswith(b"\n"):
                    return
                raise _broken(path, number, _fault_of(line)) from None
            if not isinstance(values, dict) or not isinstance(values.get("step"), int):
                raise _broken(path, number, _fault_of(line))
            yield number, values


def _drop_after(path: Path, last_step: int) -> int:
    """Cut `path` after the last record of a step up to `last_step`; how many records went."""
    if not path.exists():
        return 0
    dropped, keep = 0, 0
    with path.open("r+b") as file:
        for start, line in _lines_backwards(path):
            whole = line.endswith(b"\n")
            step = _step_of(line)
            if step is None and whole:
                raise _broken(path, _line_number(path, start), _fault_of(line))
            if step is not None and step <= last_step:
                keep = start + len(line)
                if not whole:
                    file.seek(keep)
                    keep += file.write(b"\n")
                break
            dropped += step is not None
        if file.seek(0, os.SEEK_END) != keep:
            file.truncate(keep)
            file.flush()
            os.fsync(file.fileno())
    return dropped


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


def _fault_of(line: bytes) -> str:
    try:
        json.loads(line)
    except ValueError:
        return "is no JSON"
    return "is no object with an integer 'step'"


def _line_number(path: Path, offset: int) -> int:
    """Which line begins at `offset`, counted from 1."""
    with path.open("rb") as file:
        return file.read(offset).count(b"\n") + 1


def _written(record: AnyRecord) -> dict[str, float | int | bool | str]:
    return record.values() if isinstance(record, SaveRecord) else _known(record)


def _known(record: AnyRecord) -> dict[str, float | int | bool | str]:
    return {name: value for name, value in dataclasses.asdict(record).items() if value is not None}


def _json_value(value: float | int | bool | str) -> float | int | bool | str | None:
    """Replace what JSON cannot hold by None."""
    return value if isinstance(value, str) else finite(value)


def _broken(path: Path, number: int, what: str) -> RootsError:
    return RootsError(
        problem(f"{path}, line {number}", None, what, "repair that line or move the file away")
    )


def _unusable(path: Path, error: OSError) -> RootsError:
    rule = f"cannot be used ({error.strerror})"
    line = problem(str(path), None, rule, "check the path, its rights and the disk")
    return RootsError(line, exit_code=code_of(error))
