"""Records of a run: exact fields, valid JSON, no duplicates after a resume, torn lines."""

from __future__ import annotations

import json
import math
from io import FileIO
from pathlib import Path

import pytest

from roots.errors import RootsError
from roots.training.callbacks import record_file
from roots.training.callbacks.metrics import (
    EvaluationRecord,
    EvaluationWriter,
    MetricsWriter,
    SaveRecord,
    SaveWriter,
    read_evaluations,
    read_metrics,
    read_saves,
)
from tests.helpers.records import step_record


def write(path: Path, steps: range, resume_step: int = 0) -> None:
    writer = MetricsWriter(path, resume_step)
    for step in steps:
        writer.write(step_record(step))
    writer.close()


def test_line_holds_exactly_the_documented_fields(tmp_path: Path) -> None:
    write(tmp_path / "metrics.jsonl", range(1, 2))
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert list(json.loads(line)) == [
        "step",
        "consumed_samples",
        "consumed_tokens",
        "loss",
        "lr",
        "grad_norm",
        "loss_scale",
        "skipped",
        "step_seconds",
        "tokens_per_second",
        "tflops",
        "mfu",
        "memory_bytes",
        "overflow",
    ]


def test_reading_gives_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    write(path, range(1, 6))
    assert read_metrics(path) == [step_record(step) for step in range(1, 6)]


def test_each_record_is_visible_before_the_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path)
    for step in (1, 2):
        writer.write(step_record(step))
        assert [one.step for one in read_metrics(path)] == list(range(1, step + 1))
    writer.sync()
    writer.close()


def test_resume_drops_the_steps_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 11))
    write(path, range(7, 9), resume_step=6)
    assert [one.step for one in read_metrics(path)] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert list(tmp_path.iterdir()) == [path]


def test_fresh_start_drops_everything(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 4))
    write(path, range(1, 2))
    assert [one.step for one in read_metrics(path)] == [1]


@pytest.mark.parametrize("block", [1, 7, 300, 1 << 20])
@pytest.mark.parametrize("keep", [0, 1, 6, 9, 10, 11])
def test_dropping_cuts_after_the_last_line_to_keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, keep: int
) -> None:
    monkeypatch.setattr("roots.training.callbacks.record_file._BLOCK_BYTES", block)
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 11))
    lines = path.read_bytes().splitlines(keepends=True)
    writer = MetricsWriter(path, keep)
    writer.begin()
    writer.close()
    assert path.read_bytes() == b"".join(lines[:keep])


def test_opening_reads_the_tail_alone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 4))
    path.write_bytes(b"not looked at\n" + path.read_bytes())
    write(path, range(4, 5), resume_step=3)
    assert len(path.read_bytes().splitlines()) == 5


@pytest.mark.parametrize("content", ["notes of mine\n", "1\n2\n", '{"steps": 3}\n', "\n"])
def test_file_that_holds_something_else_is_left_as_it_is(tmp_path: Path, content: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(content)
    with pytest.raises(RootsError, match=r"metrics\.jsonl, line \d: is no "):
        MetricsWriter(path)
    assert path.read_text() == content


def test_line_without_room_leaves_no_part_of_itself_and_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 3))
    before = path.read_bytes()
    writer = MetricsWriter(path, 2)

    class Short:
        """A file on a disk that has room for 100 bytes."""

        def __init__(self, file: FileIO) -> None:
            self.file, self.room = file, 100
            self.fileno, self.truncate, self.close = file.fileno, file.truncate, file.close

        def write(self, data: memoryview) -> int:
            if self.room == 0:
                raise OSError(28, "No space left on device")
            count = self.file.write(data[: self.room])
            self.room -= count
            return count

    file = Short(writer._file)
    monkeypatch.setattr(writer, "_file", file)
    for step in (3, 4):
        writer.write(step_record(step))
        assert path.read_bytes() == before
    file.room = 10_000
    writer.write(step_record(5))
    writer.close()
    assert read_metrics(path) == [step_record(step) for step in range(1, 6)]
    assert caplog.messages == [
        f"{path}: cannot be written (No space left on device); training goes on, and records wait "
        "in memory until it can be; free some disk space",
        f"{path}: is written again",
    ]


def test_what_waits_is_bounded_and_what_is_lost_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(record_file, "MOST_WAITING", 2)
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    whole = writer._file
    with open("/dev/full", "ab", buffering=0) as full:
        monkeypatch.setattr(writer, "_file", full)
        for step in range(1, 5):
            writer.write(step_record(step))
    monkeypatch.setattr(writer, "_file", whole)
    writer.write(step_record(5))
    writer.close()
    assert [record.step for record in read_metrics(writer.path)] == [4, 5]
    assert caplog.messages[1:] == [f"{writer.path}: is written again, without 3 records"]


def test_not_finite_values_are_null_and_read_as_nan(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path)
    writer.write(step_record(1, loss=math.nan, grad_norm=math.inf, skipped=True))
    writer.close()
    values = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert values["loss"] is None
    assert values["grad_norm"] is None
    (back,) = read_metrics(path)
    assert math.isnan(back.loss)
    assert math.isnan(back.grad_norm)
    assert back.skipped is True


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_torn_last_line_is_left_out_and_overwritten(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 4))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:cut])
    assert [one.step for one in read_metrics(path)] == [1, 2]
    write(path, range(3, 5), resume_step=2)
    assert [one.step for one in read_metrics(path)] == [1, 2, 3, 4]


def test_whole_last_line_without_its_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 3))
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert len(read_metrics(path)) == 2
    write(path, range(3, 4), resume_step=2)
    assert [one.step for one in read_metrics(path)] == [1, 2, 3]


def test_broken_line_in_the_middle_names_its_number(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 4))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + "{broken\n" + lines[2])
    for action in (read_metrics, MetricsWriter):
        with pytest.raises(RootsError) as caught:
            action(path)
        assert str(caught.value) == (
            f"{path}, line 2: is no JSON; repair that line or move the file away"
        )


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("[1, 2]", "is no object with an integer 'step'"),
        ('{"loss": 1.0}', "is no object with an integer 'step'"),
        ('{"step": 1}', "has no field 'consumed_samples'"),
    ],
)
def test_line_that_is_no_record_is_named(tmp_path: Path, line: str, what: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(RootsError) as caught:
        read_metrics(path)
    assert str(caught.value) == f"{path}, line 1: {what}; repair that line or move the file away"


def test_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RootsError) as caught:
        read_metrics(tmp_path / "none.jsonl")
    (line,) = caught.value.lines
    assert line == (
        f"{tmp_path / 'none.jsonl'}: cannot be used (No such file or directory); "
        "check the path, its rights and the disk"
    )


def test_evaluations_keep_their_exponential(tmp_path: Path) -> None:
    path = tmp_path / "evaluations.jsonl"
    writer = EvaluationWriter(path)
    writer.write(EvaluationRecord.of(0, math.log(50.0)))
    writer.write(EvaluationRecord.of(10, 1e6))
    writer.close()
    first, second = read_evaluations(path)
    assert first.step == 0
    assert first.perplexity == pytest.approx(50.0)
    assert second.loss == 1e6
    assert math.isnan(second.perplexity)
    assert json.loads(path.read_text().splitlines()[1])["perplexity"] is None


@pytest.mark.parametrize(("resume_step", "kept"), [(0, []), (10, [0, 10]), (15, [0, 10])])
def test_evaluations_after_the_checkpoint_are_dropped(
    tmp_path: Path, resume_step: int, kept: list[int]
) -> None:
    path = tmp_path / "evaluations.jsonl"
    writer = EvaluationWriter(path)
    for step in (0, 10, 20):
        writer.write(EvaluationRecord.of(step, 1.0))
    writer.close()
    writer = EvaluationWriter(path, resume_step)
    writer.begin()
    writer.close()
    assert [one.step for one in read_evaluations(path)] == kept


def test_saves_are_written_with_their_rate(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints.jsonl"
    records = [SaveRecord(2, 3_000_000_000, 0.25, 2.0, 0.9), SaveRecord(4, 5, 0.0, 0.0)]
    writer = SaveWriter(path)
    for record in records:
        writer.write(record)
    writer.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {
            "step": 2,
            "bytes": 3_000_000_000,
            "stall_seconds": 0.25,
            "write_seconds": 2.0,
            "disk_share": 0.9,
            "gigabytes_per_second": 1.5,
        },
        {
            "step": 4,
            "bytes": 5,
            "stall_seconds": 0.0,
            "write_seconds": 0.0,
            "gigabytes_per_second": None,
        },
    ]
    assert read_saves(path) == records
    writer = SaveWriter(path, 3)
    writer.begin()
    writer.close()
    assert read_saves(path) == records[:1]


def test_records_of_before_there_was_a_field_are_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 3))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    del lines[0]["overflow"]
    lines[1]["overflow"] = "head.weight on rank 3"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [record.overflow for record in read_metrics(path)] == ["", "head.weight on rank 3"]


def test_expert_loads_are_written_and_read_where_there_are_experts(tmp_path: Path) -> None:
    """A dense model's lines do not know of them."""
    path = tmp_path / "metrics.jsonl"
    loads = {"expert_max_load": 1.5, "expert_dropped": 0.0, "expert_z_loss": math.inf}
    records = [step_record(1), step_record(2, **loads)]
    writer = MetricsWriter(path)
    for record in records:
        writer.write(record)
    writer.close()
    dense, experts = (json.loads(line) for line in path.read_text().splitlines())
    assert not any(name.startswith("expert_") for name in dense)
    assert {name: experts[name] for name in loads} == {**loads, "expert_z_loss": None}
    first, second = read_metrics(path)
    assert first == records[0]
    assert (second.expert_max_load, second.expert_balance_loss) == (1.5, None)
    assert second.expert_z_loss is not None
    assert math.isnan(second.expert_z_loss)
