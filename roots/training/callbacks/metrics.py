"""The records of a run: metrics.jsonl (one a step), evaluations.jsonl (one an evaluation) and
checkpoints.jsonl (one a checkpoint that became whole).

Format: UTF-8 text, one JSON object a line, each line written and flushed whole. `step` counts
finished updates, so the first record has step 1 and a checkpoint of step k holds records 1..k.
JSON has no NaN and no infinity: a value that is not finite is written as null, whatever the kind,
and read back as NaN. (`skipped` tells an fp16 overflow apart from a model that broke.)

Steps never fall from line to line: those of a course that a run has left are dropped when it has
made its first step on another (record_file.py).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from roots.evaluation.likelihood import finite, perplexity_of
from roots.training.callbacks.record_file import RecordFile, broken, fault_of, unusable

METRICS_FILE = "metrics.jsonl"
EVALUATIONS_FILE = "evaluations.jsonl"
CHECKPOINTS_FILE = "checkpoints.jsonl"


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
    """Held-out loss after `step` updates (0: before the first), and its exponential.

    `tasks`: scores on tasks, by TASK/MEASURE, where some were asked; left out elsewhere. One that
    is not finite is None.
    """

    step: int
    loss: float
    perplexity: float
    tasks: Mapping[str, float | None] | None = None

    @classmethod
    def of(
        cls, step: int, loss: float, tasks: Mapping[str, float] | None = None
    ) -> EvaluationRecord:
        """Make the record of a loss in nats a token, and of scores on tasks."""
        scores = {name: finite(value) for name, value in (tasks or {}).items()}
        return cls(step, loss, perplexity_of(loss), scores or None)


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


class RecordWriter(RecordFile):
    """Appends records to a file of a run that goes on after `start` steps."""

    def write(self, record: AnyRecord) -> None:
        """As `append`."""
        self.append(record.step, _written(record))


class MetricsWriter(RecordWriter):
    """Writes `metrics.jsonl`: one StepRecord a line."""


class EvaluationWriter(RecordWriter):
    """Writes `evaluations.jsonl`: one EvaluationRecord a line.

    An evaluation at step 0 precedes the first update, so a run from scratch drops it as well.
    """

    def __init__(self, path: Path, start: int = 0) -> None:
        least = start if start > 0 else -1
        super().__init__(path, start, lambda step, line: step <= least)


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
                raise broken(path, number, f"has no field {missing[0]!r}")
            # null stands for a number that was not finite; no field is null otherwise.
            found: dict[str, Any] = {
                name: math.nan if values[name] is None else values[name]
                for name in names
                if name in values
            }
            yield kind(**found)
    except OSError as error:
        raise unusable(path, error, "check the path, its rights and the disk") from error


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
                raise broken(path, number, fault_of(line)) from None
            if not isinstance(values, dict) or not isinstance(values.get("step"), int):
                raise broken(path, number, fault_of(line))
            yield number, values


def _written(record: AnyRecord) -> dict[str, float | int | bool | str]:
    return record.values() if isinstance(record, SaveRecord) else _known(record)


def _known(record: AnyRecord) -> dict[str, float | int | bool | str]:
    return {name: value for name, value in dataclasses.asdict(record).items() if value is not None}
