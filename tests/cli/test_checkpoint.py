"""What `roots checkpoint` says of the checkpoints of a run, and what it removes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from roots.checkpoint import folders, manifest
from roots.config import RunConfig
from roots.data.record import DataRecord, SideRecord, SourceRecord
from roots.lock import RUN_LOCK_NAME, Place, owned
from tests.helpers.checkpoint_command import (
    call,
    folder_of,
    minute_of,
    printed,
    refused,
    size_of,
)
from tests.helpers.checkpoints import STATE_NAME, WEIGHTS_NAME, flip_bit, save_checkpoint
from tests.helpers.runs import small_config

LAYOUT = manifest.Layout(2, 1, 1, 1, "bf16")
LOSSES = {2: 3.5, 4: None, 6: 2.25, 8: 2.5}
FIX = "use another checkpoint of the run"
SAVED = 1_700_000_000  # in seconds since the epoch


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A run with checkpoints of steps 2, 4, 6 and 8, one of which has no held-out loss."""
    config = small_config(tmp_path / "data", tmp_path)
    for step, loss in LOSSES.items():
        save_checkpoint(config, step, layout=LAYOUT, loss=loss, saved=SAVED + 60 * step)
    return config


@pytest.fixture
def run(config: RunConfig) -> Path:
    return config.run_directory


def steps(run: Path) -> list[int]:
    root = run / folders.CHECKPOINTS_FOLDER
    return [folders.step_of(path) for path in folders.finished_checkpoints(root)]


def test_list_has_a_line_for_each(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head, *lines = printed(capsys, "list", run)
    assert head.split() == ["checkpoint", "saved", "bytes", "held-out", "state", "layout"]
    for line, (step, loss) in zip(lines, LOSSES.items(), strict=True):
        name, saved, size, held_out, state, layout = re.split(r"  +", line)
        folder = folder_of(run, step)
        assert name == folder.name
        assert saved == minute_of(SAVED + 60 * step)
        assert size == f"{size_of(folder):,}"
        assert held_out == ("-" if loss is None else f"{loss:.4f}")
        assert (state, layout) == ("complete", LAYOUT.describe())


def test_list_tells_what_is_damaged_or_set_aside(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder_of(run, 4) / STATE_NAME).unlink()
    flip_bit(folder_of(run, 6) / STATE_NAME)
    (folder_of(run, 8) / manifest.MANIFEST_NAME).write_text("{")
    folders.set_aside(folder_of(run, 2), folders.SUPERSEDED)
    (folder_of(run, 10)).mkdir()
    _, *lines = printed(capsys, "list", run)
    shown = [re.split(r"  +", line) for line in lines[:5]]
    assert [(words[0], words[4]) for words in shown] == [
        ("step_00000004", "damaged"),
        # Nobody has read it.
        ("step_00000006", "complete"),
        ("step_00000008", "damaged"),
        ("step_00000010", "damaged"),
        ("superseded_step_00000002", "set aside"),
    ]
    assert shown[2][2:] == ["-", "-", "damaged", "-"]
    first, second, third = lines[5:]
    assert first == f"checkpoint file='{folder_of(run, 4)}/{STATE_NAME}': is missing; {FIX}"
    assert second.startswith(f"manifest='{folder_of(run, 8)}/manifest.json': is not readable (")
    assert third == manifest.no_manifest(str(folder_of(run, 10)))


def test_list_as_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = json.loads("\n".join(printed(capsys, "list", run, "--json")))
    assert [(each["step"], each["evaluation"]) for each in records] == list(LOSSES.items())
    assert records[0] == {
        "path": str(folder_of(run, 2)),
        "step": 2,
        "saved": datetime.fromtimestamp(SAVED + 120).astimezone().isoformat(),
        "file_time": records[0]["file_time"],
        "bytes": size_of(folder_of(run, 2)),
        "layout": {**vars(LAYOUT)},
        "precision": "bf16",
        "evaluation": 3.5,
        "resumable": records[0]["resumable"],
        "state": "complete",
        "damage": [],
    }


def test_time_of_saving_outlives_a_copy(
    config: RunConfig, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copy has files of its own time, which is told where the manifest has none, and marked."""
    save_checkpoint(config, 10, layout=LAYOUT)
    for step in (8, 10):
        os.utime(folder_of(run, step) / manifest.MANIFEST_NAME, (0, 0))
    lines = [re.split(r"  +", line) for line in printed(capsys, "list", run)[-2:]]
    assert [words[1] for words in lines] == [minute_of(SAVED + 480), f"~{minute_of(0)}"]
    shown = dict(line.split(maxsplit=1) for line in printed(capsys, "show", run))
    assert shown["saved"] == f"~{minute_of(0)}"
    record = json.loads("\n".join(printed(capsys, "show", run, "--json")))
    assert (record["saved"], record["file_time"]) == (
        None,
        datetime.fromtimestamp(0).astimezone().isoformat(),
    )


def test_list_of_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, line = printed(capsys, "list", folder_of(run, 4))
    assert line.startswith("step_00000004 ")
    assert refused(capsys, "list", run / "nothing") == [
        f"checkpoint='{run}/nothing': does not exist; give a folder like "
        "RUN/checkpoints/step_00000100, or the folder of a run"
    ]


def test_show_in_words(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of(run, 8)
    lines = dict(line.split(maxsplit=1) for line in printed(capsys, "show", run))
    assert lines["checkpoint"] == str(folder)
    assert lines["step"] == "8, after 64 samples, 1,024 tokens"
    assert lines["data"] == "phase 0, of which nothing is recorded"
    assert lines["held-out"] == "2.5000"
    assert lines["layout"] == LAYOUT.describe()
    assert lines["model"] == "decoder, 25 parameters in 2 tensors"
    weights, state = ((folder / name).stat().st_size for name in (WEIGHTS_NAME, STATE_NAME))
    others = size_of(folder) - weights - state
    assert lines["bytes"] == (
        f"{size_of(folder):,} in 3 files: other files {others:,}, optimizer {state}, "
        f"weights {weights}"
    )
    assert lines["state"] == "complete"


def test_show_as_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads("\n".join(printed(capsys, "show", folder_of(run, 4), "--json")))
    assert document["consumed_samples"] == 32
    assert (document["tensors"], document["parameters"]) == (2, 25)
    assert document["evaluation"] is None
    assert document["files"]["weights"]["files"] == 1


def test_show_tells_the_phase_of_the_data(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    side = {"documents": 30, "tokens": 1200, "digest": "d"}
    source = SourceRecord("a", 0.5, (SideRecord(**side),))
    record = DataRecord(1, 1024, "fingerprint", (source, source))
    folder = save_checkpoint(config, 10, layout=LAYOUT, data=record)
    lines = dict(line.split(maxsplit=1) for line in printed(capsys, "show", folder))
    assert lines["data"] == "phase 1, from sample 1,024 on: 2,400 tokens in 2 datasets"
    document = json.loads("\n".join(printed(capsys, "show", folder, "--json")))
    assert document["data"] == {
        "phase": 1,
        "first_sample": 1024,
        "tokenizer": "fingerprint",
        "sources": [{"prefix": "a", "weight": 0.5, "sides": [side]}] * 2,
    }


def test_show_names_what_is_missing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder_of(run, 8) / STATE_NAME).unlink()
    *_, last = printed(capsys, "show", run)
    assert last == f"checkpoint file='{folder_of(run, 8)}/{STATE_NAME}': is missing; {FIX}"


def test_verify_reads_all_of_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "verify", run) == [
        f"{folder}: {size_of(folder):,} bytes in 3 files, as it was saved"
        for folder in (folder_of(run, step) for step in LOSSES)
    ]
    flip_bit(folder_of(run, 4) / STATE_NAME)
    (folder_of(run, 6) / WEIGHTS_NAME).unlink()
    lines = refused(capsys, "verify", run)
    assert lines == [
        f"checkpoint file='{folder_of(run, 4)}/{STATE_NAME}': does not have the checksum that the "
        f"manifest records; {FIX}",
        f"checkpoint file='{folder_of(run, 6)}/{WEIGHTS_NAME}': is missing; {FIX}",
    ]
    assert call("verify", folder_of(run, 8)) == 0


def test_one_that_has_lost_its_manifest_is_damaged(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(run, 6)
    (folder / manifest.MANIFEST_NAME).unlink()
    line = manifest.no_manifest(str(folder))
    listed = printed(capsys, "list", run)
    assert [row.split()[:5] for row in listed if row.startswith("step_00000006")] == [
        ["step_00000006", "-", "-", "-", "damaged"]
    ]
    assert line in listed
    assert call("verify", run) == 2
    assert line in capsys.readouterr().err


@pytest.mark.parametrize("command", ["list", "verify"])
def test_what_a_run_removes_meanwhile_is_left_out(
    run: Path, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(folder: Path) -> manifest.Manifest:
        found = read_manifest(folder)
        if folder == folder_of(run, 4):
            folders.remove(folder_of(run, 6))
            folders.remove(folder)
        return found

    read_manifest = manifest.read_manifest
    for module in ("manifest", "entries"):
        monkeypatch.setattr(f"roots.checkpoint.{module}.read_manifest", read)
    lines = printed(capsys, command, run)
    assert len(lines) == (3 if command == "list" else 2)
    assert not any(name in line for name in ("step_00000004", "is missing") for line in lines)


def test_verify_as_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder_of(run, 4) / manifest.MANIFEST_NAME).write_text("[]")
    assert call("verify", run, "--json") == 2
    reports = json.loads(capsys.readouterr().out)
    assert [bool(each["damage"]) for each in reports] == [False, True, False, False]
    assert reports[0] == {
        "path": str(folder_of(run, 2)),
        "files": 3,
        "bytes": size_of(folder_of(run, 2)),
        "damage": [],
    }


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (["--keep-last", "2"], [6, 8]),
        (["--keep-every-steps", "4"], [4, 8]),
        (["--keep-best", "1"], [6, 8]),
        (["--keep-best", "3"], [2, 6, 8]),
        (["--keep-last", "1", "--keep-every-steps", "4", "--keep-best", "1"], [4, 6, 8]),
        (["--keep-last", "9"], [2, 4, 6, 8]),
    ],
)
def test_prune_removes_what_no_option_keeps(
    run: Path, options: Sequence[str], left: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    doomed = [step for step in LOSSES if step not in left]
    kept = f"kept {', '.join(folders.step_name(step) for step in left)}"
    lines = printed(capsys, "prune", run, *options, "--dry-run")
    assert lines == [*(f"would remove {folder_of(run, step)}" for step in doomed), kept]
    assert steps(run) == list(LOSSES)
    lines = printed(capsys, "prune", run, *options)
    assert lines == [*(f"removed {folder_of(run, step)}" for step in doomed), kept]
    assert steps(run) == left
    assert not (run / RUN_LOCK_NAME).exists()


def test_prune_as_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads("\n".join(printed(capsys, "prune", run, "--keep-last", 3, "--json")))
    assert document == {
        "kept": [str(folder_of(run, step)) for step in (4, 6, 8)],
        "removed": [str(folder_of(run, 2))],
        "failed": [],
        "dry_run": False,
    }


def test_prune_asks_what_to_keep(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "prune", run) == [
        f"checkpoint='{run}': nothing says what to keep; give --keep-last, --keep-every-steps or "
        "--keep-best"
    ]
    assert refused(capsys, "prune", folder_of(run, 4), "--keep-last", 1) == [
        f"checkpoint='{folder_of(run, 4)}': is one checkpoint; give the folder of the run, to "
        "choose among its checkpoints"
    ]


def test_prune_of_the_best_needs_losses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small_config(tmp_path / "data", tmp_path)
    for step in (2, 4):
        save_checkpoint(config, step, layout=LAYOUT)
    assert refused(capsys, "prune", config.run_directory, "--keep-best", 1) == [
        "--keep-best=1: chooses by held-out losses, and no checkpoint of the run has one; leave it "
        "out, or set evaluation.every_steps of the run"
    ]
    assert steps(config.run_directory) == [2, 4]


@pytest.mark.parametrize("option", ["--dry-run", None])
def test_prune_leaves_a_good_one(
    run: Path, option: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    flip_bit(folder_of(run, 8) / STATE_NAME)
    (folder_of(run, 6) / manifest.MANIFEST_NAME).write_text("[]")
    words: list[Any] = ["prune", run, *([] if option is None else [option])]
    root = run / folders.CHECKPOINTS_FOLDER
    assert refused(capsys, *words, "--keep-last", 2) == [
        f"checkpoint file='{folder_of(run, 8)}/{STATE_NAME}': does not have the checksum that the "
        f"manifest records; {FIX}",
        f"manifest='{folder_of(run, 6)}/manifest.json': is not readable (TypeError: no object); "
        f"{FIX}",
        f"checkpoints='{root}': would have no good checkpoint left, so nothing was removed; keep "
        "more of them; `roots checkpoint verify` names those that are good",
    ]
    assert steps(run) == list(LOSSES)
    assert call(*words, "--keep-last", 3) == 0
    assert steps(run) == ([4, 6, 8] if option is None else list(LOSSES))


def test_prune_waits_for_nobody(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = Place("run folder", "the run is recorded there", "wait", value=str(run))
    with owned(run / RUN_LOCK_NAME, place):
        (line,) = refused(capsys, "prune", run, "--keep-last", 1)
        assert line.startswith(f"run folder='{run}': in use by pid {os.getpid()} on host ")
        assert line.endswith("; wait for that run or end it; --dry-run only looks")
        assert call("prune", run, "--keep-last", 1, "--dry-run") == 0
    assert steps(run) == list(LOSSES)


def test_what_cannot_be_removed_is_an_error(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "remove", lambda path: path != folder_of(run, 4))
    assert refused(capsys, "prune", run, "--keep-last", 2) == [
        f"checkpoint='{folder_of(run, 4)}': could not be removed, or not all of it; change its "
        "rights, or remove it yourself"
    ]
