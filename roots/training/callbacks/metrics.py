"""The records of a run: metrics.jsonl (one a step) and evaluations.jsonl (one an evaluation).

Format: UTF-8 text, one JSON object a line, each line written and flushed whole. `step` counts
finished updates, so the first record has step 1 and a checkpoint of step k holds records 1..k.
JSON has no NaN and no infinity: a value that is not finite is written as null, whatever the kind,
and read back as NaN. (`skipped` tells an fp16 overflow apart from a model that broke.)

A run that died after writing records but before its next checkpoint repeats those steps. So the
writer, opened with the step it resumes from, first drops every later record: it writes the kept
lines to a temporary file, syncs it and renames it over the old one. A last line that a crash left
torn is dropped too; anything else that is no record is an error that names the line.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from roots.errors import RootsError, problem
from roots.evaluation.likelihood import finite, perplexity_of
from roots.files import publish, removed_on_error
from roots.log import get_logger

METRICS_FILE = "metrics.jsonl"
EVALUATIONS_FILE = "evaluations.jsonl"

_LOGGER = get_logger("training.metrics")


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
    were (and in records of before there was the field). The fields `expert_...` are those of
    training/experts.py ExpertLoad; a dense model has none, and its lines leave them out.
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


Record = TypeVar("Record", StepRecord, EvaluationRecord)


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
            self._file = path.open("a", encoding="utf-8", newline="\n")
        except OSError as error:
            raise _unusable(path, error) from error
        if dropped:
            _LOGGER.info("%s: dropped %d records after step %d", path, dropped, resume_step)

    def write(self, record: StepRecord | EvaluationRecord) -> None:
        """Append one line and hand it to the operating system."""
        fields = {name: _json_value(value) for name, value in _known(record).items()}
        self._file.write(json.dumps(fields, allow_nan=False) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Make what was written survive a power cut; called where a checkpoint becomes final."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()


class MetricsWriter(RecordWriter):
    """Writes `metrics.jsonl`: one StepRecord a line."""


class EvaluationWriter(RecordWriter):
    """Writes `evaluations.jsonl`: one EvaluationRecord a line.

    An evaluation at step 0 precedes the first update, so a run from scratch drops it as well.
    """

    def __init__(self, path: Path, resume_step: int = 0) -> None:
        super().__init__(path, resume_step if resume_step > 0 else -1)


def read_metrics(path: Path) -> list[StepRecord]:
    """Read all step records of a file. A torn last line is left out.

    Raises RootsError for a missing file, and naming the line for anything else that is no record.
    """
    return list(_records(path, StepRecord))


def read_evaluations(path: Path) -> list[EvaluationRecord]:
    """Read all evaluation records of a file, like `read_metrics`."""
    return list(_records(path, EvaluationRecord))


def _records(path: Path, kind: type[Record]) -> Iterator[Record]:
    """Yield the records of `path`; unknown keys are skipped, missing ones, if not new, errors."""
    fields = dataclasses.fields(kind)
    required = [field.name for field in fields if field.default is dataclasses.MISSING]
    names = [field.name for field in fields]
    try:
        for number, _, values in _objects(path):
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


def _objects(path: Path) -> Iterator[tuple[int, bytes, dict[str, Any]]]:
    """Yield line number, line and parsed object of every whole record line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                values = json.loads(line)
            except ValueError:
                # Only the last line of a file can lack its end: a write that was cut short.
                if not line.endswith(b"\n"):
                    return
                raise _broken(path, number, "is no JSON") from None
            if not isinstance(values, dict) or not isinstance(values.get("step"), int):
                raise _broken(path, number, "is no object with an integer 'step'")
            yield number, line, values


def _drop_after(path: Path, last_step: int) -> int:
    """Rewrite `path` with the records up to `last_step` only; return how many were dropped."""
    if not path.exists():
        return 0
    dropped = 0
    temporary = path.with_name(path.name + ".tmp")
    with removed_on_error(temporary):
        with temporary.open("wb") as kept:
            for _, line, values in _objects(path):
                if values["step"] > last_step:
                    dropped += 1
                else:
                    kept.write(line if line.endswith(b"\n") else line + b"\n")
        publish(temporary, path)
    return dropped


def _known(record: StepRecord | EvaluationRecord) -> dict[str, float | int | bool | str]:
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
    return RootsError(problem(str(path), None, rule, "check the path, its rights and the disk"))
