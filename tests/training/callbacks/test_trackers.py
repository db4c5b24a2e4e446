"""Trackers: real TensorBoard events, real offline W&B runs, no duplicates after a resume."""

from __future__ import annotations

import json
import math
import shutil
import struct
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from roots.config import RunConfig
from roots.errors import RootsError
from roots.training.callbacks.trackers import (
    TensorBoardTracker,
    Tracker,
    WandbTracker,
    build_trackers,
)


def config(**tracking: object) -> RunConfig:
    return RunConfig.model_validate({"tracking": tracking, "run": {"name": "a-run"}})


def scalars(directory: Path, name: str) -> list[tuple[int, float]]:
    """All points of a curve as TensorBoard itself reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def log_steps(tracker: Tracker, steps: range, name: str = "train/loss") -> None:
    for step in steps:
        tracker.log(step, {name: float(step)})


def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    tracker = TensorBoardTracker(tmp_path)
    tracker.log(0, {"evaluation/loss": 6.0})
    log_steps(tracker, range(1, 4))
    tracker.close()
    assert scalars(tmp_path, "train/loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert scalars(tmp_path, "evaluation/loss") == [(0, 6.0)]


def test_tensorboard_shows_no_step_twice_after_a_resume(tmp_path: Path) -> None:
    first = TensorBoardTracker(tmp_path)
    log_steps(first, range(1, 11))
    first.close()
    second = TensorBoardTracker(tmp_path, resume_step=6)
    log_steps(second, range(7, 9))
    second.close()
    assert [step for step, _ in scalars(tmp_path, "train/loss")] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_tensorboard_forgets_nothing_for_a_start_that_makes_no_step(tmp_path: Path) -> None:
    """The next may go on from a later step: a copy that a start of another layout passes by."""
    first = TensorBoardTracker(tmp_path)
    log_steps(first, range(1, 9))
    first.close()
    TensorBoardTracker(tmp_path, resume_step=4).close()
    last = TensorBoardTracker(tmp_path, resume_step=8)
    log_steps(last, range(9, 11))
    last.close()
    assert [step for step, _ in scalars(tmp_path, "train/loss")] == list(range(1, 11))


def test_tensorboard_forgets_an_earlier_run_from_scratch(tmp_path: Path) -> None:
    for loss in (6.0, 5.0):
        tracker = TensorBoardTracker(tmp_path)
        tracker.log(0, {"evaluation/loss": loss})
        tracker.close()
    assert scalars(tmp_path, "evaluation/loss") == [(0, 5.0)]


def test_only_rank_zero_writes(tmp_path: Path) -> None:
    wanted = config(tensorboard=True, wandb=True, wandb_mode="offline")
    assert build_trackers(wanted, tmp_path / "run", rank=1, resume_step=0) == []
    assert not (tmp_path / "run").exists()


def test_trackers_that_are_off_are_not_opened(tmp_path: Path) -> None:
    assert build_trackers(config(tensorboard=False), tmp_path, rank=0, resume_step=0) == []
    (tracker,) = build_trackers(config(), tmp_path, rank=0, resume_step=0)
    assert isinstance(tracker, TensorBoardTracker)
    tracker.close()


def log_chunks(data: bytes) -> Iterator[bytes]:
    """Records of a LevelDB log, the format of .wandb files: 32 KiB blocks after a 7-byte header."""
    block, head = 32768, 7
    place, record = head, b""
    while place + head <= len(data):
        if block - place % block < head:
            place += block - place % block
            continue
        length, part = struct.unpack_from("<HB", data, place + 4)
        record += data[place + head : place + head + length]
        place += head + length
        if part in (1, 4):  # whole, or the last of several parts
            yield record
            record = b""


def offline_history(run_directory: Path) -> list[tuple[int, dict[str, float]]]:
    """Step and values of every history row of the only offline W&B folder in a run directory."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = run_directory.glob("wandb/offline-run-*/run-*.wandb")
    rows = []
    for chunk in log_chunks(path.read_bytes()):
        record = Record.FromString(chunk)
        if record.WhichOneof("record_type") == "history":
            items = {
                item.key or ".".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            rows.append((record.history.step.num, items))
    return rows


def test_offline_wandb_resumes_under_one_id_without_duplicates(tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    wanted = config(tensorboard=False, wandb=True, wandb_mode="offline", wandb_project="p")
    # W&B names folders by the second, so the two sessions of this fast test get one each.
    before, after = tmp_path / "before", tmp_path / "after"
    (first,) = build_trackers(wanted, before, rank=0, resume_step=0)
    log_steps(first, range(1, 6))
    first.log(6, {"train/loss": 6.0, "train/grad_norm": math.inf})
    first.close()
    after.mkdir()
    shutil.copy(before / "wandb.json", after)
    (second,) = build_trackers(wanted, after, rank=0, resume_step=4)
    log_steps(second, range(5, 7))
    second.log(6, {"evaluation/loss": 3.0})
    log_steps(second, range(7, 9))
    second.close()
    # W&B's own process writes the files, and may still be at it until it has ended.
    wandb.teardown()

    rows = offline_history(before) + offline_history(after)
    losses = [(step, row["train/loss"]) for step, row in rows if "train/loss" in row]
    assert losses == [(step, float(step)) for step in range(1, 9)]
    assert [(step, row["evaluation/loss"]) for step, row in rows if "evaluation/loss" in row] == [
        (6, 3.0)
    ]
    assert not any("train/grad_norm" in row for _, row in rows)
    ids = [json.loads((folder / "wandb.json").read_text())["id"] for folder in (before, after)]
    assert ids[0] == ids[1]
    for folder, one in zip((before, after), ids):
        assert list(folder.glob(f"wandb/offline-run-*/run-{one}.wandb"))


class FakeRun:
    """Stands for a W&B run; keeps what was logged."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.finished = False

    def log(self, values: dict[str, float], step: int) -> None:
        self.rows.append((step, values))

    def finish(self) -> None:
        self.finished = True


class FakeWandb(types.ModuleType):
    """Stands for the wandb package; keeps the arguments of init."""

    def __init__(self, refusal: str | None = None) -> None:
        super().__init__("wandb")
        self.errors = types.SimpleNamespace(Error=type("Error", (Exception,), {}))
        self.calls: list[dict[str, object]] = []
        self.runs: list[FakeRun] = []
        self.refusal = refusal

    def Settings(self, **fields: object) -> dict[str, object]:
        return fields

    def init(self, **arguments: object) -> FakeRun:
        if self.refusal is not None:
            raise self.errors.Error(self.refusal)
        self.calls.append(arguments)
        self.runs.append(FakeRun())
        return self.runs[-1]


def test_online_wandb_continues_the_run_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    wanted = config(wandb=True, wandb_mode="online", wandb_project="p")
    first = WandbTracker(wanted, tmp_path)
    log_steps(first, range(1, 4))
    first.close()
    WandbTracker(wanted, tmp_path, resume_step=2).log(3, {"train/loss": 3.0})
    WandbTracker(wanted, tmp_path, resume_step=0).log(1, {"train/loss": 9.0})

    begun, resumed, afresh = fake.calls
    assert (begun["mode"], begun["resume"], begun["project"]) == ("online", "allow", "p")
    assert begun["name"] == "a-run"
    assert begun["config"] == wanted.model_dump(mode="json")
    assert resumed["id"] == begun["id"]
    assert afresh["id"] != begun["id"]
    assert [run.rows for run in fake.runs[1:]] == [[], [(1, {"train/loss": 9.0})]]
    assert fake.runs[0].finished


def test_wandb_goes_on_with_its_run_after_a_start_that_made_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    wanted = config(wandb=True, wandb_mode="online", wandb_project="p")
    log_steps(WandbTracker(wanted, tmp_path), range(1, 9))
    # From the beginning, where only a copy on its machine, of step 8, was passed by.
    afresh = WandbTracker(wanted, tmp_path, resume_step=0)
    afresh.log(0, {"evaluation/loss": 6.0})
    afresh.close()
    WandbTracker(wanted, tmp_path, resume_step=8)
    begun, without_a_step, goes_on = (call["id"] for call in fake.calls)
    assert goes_on == begun != without_a_step


def test_wandb_follows_a_new_course_under_a_new_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    wanted = config(wandb=True, wandb_mode="online", wandb_project="p")
    log_steps(WandbTracker(wanted, tmp_path), range(1, 5))
    # The new course begins where reporting has ended: the history there is its own.
    assert not WandbTracker(wanted, tmp_path, 4, new_course=True).begun_anew
    rewound = WandbTracker(wanted, tmp_path, 2, new_course=True)
    assert rewound.begun_anew
    log_steps(rewound, range(1, 5))
    assert fake.calls[1]["id"] == fake.calls[0]["id"] != fake.calls[2]["id"]
    assert [step for step, _ in fake.runs[2].rows] == [1, 2, 3, 4]


def test_missing_wandb_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(RootsError) as caught:
        build_trackers(config(tensorboard=False, wandb=True), tmp_path, rank=0, resume_step=0)
    assert caught.value.lines == (
        "tracking.wandb=True: needs the package wandb, which cannot be imported here; "
        "pip install .[wandb], or set tracking.wandb=false",
    )


def test_refusal_of_wandb_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = "api_key not configured (no-tty).\nA second line."
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(refusal))
    with pytest.raises(RootsError) as caught:
        WandbTracker(config(wandb=True, wandb_mode="online"), tmp_path)
    assert caught.value.lines == (
        "tracking.wandb_mode='online': Weights & Biases refused: api_key not configured (no-tty).; "
        "run `wandb login`, or set tracking.wandb_mode=offline",
    )


def test_broken_wandb_state_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb())
    (tmp_path / "wandb.json").write_text("{half")
    with pytest.raises(RootsError) as caught:
        WandbTracker(config(wandb=True), tmp_path, resume_step=5)
    assert caught.value.lines == (
        f"{tmp_path / 'wandb.json'}: is no JSON object with the id of the Weights & Biases run; "
        "delete it; the run then reports under a new id",
    )


def test_missing_tensorboard_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(RootsError) as caught:
        build_trackers(config(), tmp_path, rank=0, resume_step=0)
    assert caught.value.lines == (
        "tracking.tensorboard=True: needs the package tensorboard, which cannot be imported here; "
        "pip install tensorboard, or set tracking.tensorboard=false",
    )
