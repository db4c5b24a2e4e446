"""Which folder is a checkpoint, which is the latest, and what retention removes."""

from __future__ import annotations

from pathlib import Path

import pytest

from roots.checkpoint import folders, manifest
from roots.errors import RootsError


def finish(root: Path, step: int) -> Path:
    path = root / folders.step_name(step)
    path.mkdir(parents=True)
    layout = manifest.Layout(1, 1, 1, 0, "fp32")
    manifest.write_manifest(path, manifest.Manifest(step, step, layout, {}))
    return path


def test_latest_is_the_newest_finished_one(tmp_path: Path) -> None:
    finish(tmp_path, 9)
    newest = finish(tmp_path, 10)
    (tmp_path / folders.step_name(11)).mkdir()
    assert folders.latest_checkpoint(tmp_path) == newest


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert folders.latest_checkpoint(tmp_path / "absent") is None


def test_keep_last_removes_the_oldest_and_spares_unfinished_ones(tmp_path: Path) -> None:
    steps = [finish(tmp_path, step) for step in (1, 2, 3)]
    torn = tmp_path / folders.step_name(4)
    torn.mkdir()
    assert folders.keep_last(tmp_path, 2) == steps[:1]
    assert [path.exists() for path in (*steps, torn)] == [False, True, True, True]
    assert folders.keep_last(tmp_path, 0) == []


def test_discard_removes_only_an_unfinished_save(tmp_path: Path) -> None:
    whole = finish(tmp_path, 1)
    torn = tmp_path / folders.step_name(2)
    torn.mkdir()
    assert folders.discard_unfinished(tmp_path) == [torn]
    assert folders.discard_unfinished(tmp_path) == []
    assert [path.exists() for path in (whole, torn)] == [True, False]


def test_checkpoint_is_found_from_step_run_and_root(tmp_path: Path) -> None:
    path = finish(tmp_path / folders.CHECKPOINTS_FOLDER, 5)
    for given in (path, path.parent, tmp_path):
        assert folders.resolve_checkpoint(given) == path


@pytest.mark.parametrize(
    ("name", "rule"),
    [("absent", "does not exist"), ("empty", "is no finished checkpoint and holds none")],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, name: str, rule: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RootsError) as caught:
        folders.resolve_checkpoint(tmp_path / name)
    assert caught.value.lines == (
        f"checkpoint={str(tmp_path / name)!r}: {rule}; "
        "give a folder like RUN/checkpoints/step_00000100, or the folder of a run",
    )


def test_pointer_names_the_folder_as_deepspeed_reads_it(tmp_path: Path) -> None:
    folders.point_latest(tmp_path, finish(tmp_path, 7))
    assert (tmp_path / "latest").read_text() == "step_00000007"
