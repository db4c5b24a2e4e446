"""Which folder is a checkpoint, which is the latest, and what is removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from roots.checkpoint import folders, manifest
from roots.errors import RootsError


def finish(root: Path, step: int, config: str | None = None) -> Path:
    path = root / folders.step_name(step)
    path.mkdir(parents=True)
    layout = manifest.Layout(1, 1, 1, 0, "fp32")
    files = {}
    if config is not None:
        (path / manifest.CONFIG_NAME).write_text(config, encoding="utf-8")
        files = manifest.describe_files(path, [manifest.CONFIG_NAME])
    manifest.write_manifest(path, manifest.Manifest(step, step, layout, files))
    return path


def test_latest_is_the_newest_finished_one(tmp_path: Path) -> None:
    finish(tmp_path, 9)
    newest = finish(tmp_path, 10)
    (tmp_path / folders.step_name(11)).mkdir()
    assert folders.latest_checkpoint(tmp_path) == newest


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert folders.latest_checkpoint(tmp_path / "absent") is None


def test_discard_removes_only_an_unfinished_save(tmp_path: Path) -> None:
    whole = finish(tmp_path, 1)
    torn, damaged = folders.partial_folder(tmp_path, 3), tmp_path / folders.step_name(2)
    torn.mkdir()
    damaged.mkdir()
    assert folders.discard_unfinished(tmp_path) == [torn]
    assert folders.discard_unfinished(tmp_path) == []
    assert [path.exists() for path in (whole, torn, damaged)] == [True, False, True]
    assert folders.finished_checkpoints(tmp_path) == [whole]
    assert folders.saved_checkpoints(tmp_path) == [whole, damaged]


def test_copy_that_did_not_end_is_no_damaged_checkpoint(tmp_path: Path) -> None:
    """The folder of a mirror, where a file marks what is being copied."""
    whole, half = finish(tmp_path, 1), tmp_path / folders.step_name(2)
    half.mkdir()
    for path in (whole, half):
        path.with_name(f"{path.name}{folders.PARTIAL_SUFFIX}").touch()
    assert folders.saved_checkpoints(tmp_path) == [whole]


def test_a_removal_that_was_cut_short_leaves_nothing_that_looks_like_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(path: Path) -> None:
        raise Killed

    first = finish(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", die)
        with pytest.raises(Killed):
            folders.remove(first)
    assert folders.saved_checkpoints(tmp_path) == folders.kept_aside(tmp_path) == []
    assert folders.discard_unfinished(tmp_path) == [tmp_path / "removed_step_00000001"]
    assert list(tmp_path.iterdir()) == []


STRANGERS = (
    "step_best_backup",
    "step_00000010.bak",
    "step_00000010 copy",
    "step_10",
    "step_0000000010",
    "step_\u0660\u0660\u0660\u0660\u0660\u0660\u0661\u0660",
    "global_step10",
)


def test_strangers_are_never_touched(tmp_path: Path) -> None:
    strangers = [tmp_path / name for name in STRANGERS]
    for path in strangers:
        path.mkdir()
        (path / "weights").write_text("mine")
    (tmp_path / "step_notes.txt").write_text("mine")
    (tmp_path / folders.step_name(7)).write_text("a file")
    finish(tmp_path, 5), finish(tmp_path, 6)
    assert folders.discard_unfinished(tmp_path) == []
    assert folders.finished_checkpoints(tmp_path) == [
        tmp_path / folders.step_name(step) for step in (5, 6)
    ]
    assert [path.name for path in folders.set_aside_after(tmp_path, 0)] == [
        "superseded_step_00000005",
        "superseded_step_00000006",
    ]
    assert all((path / "weights").read_text() == "mine" for path in strangers)
    assert (tmp_path / "step_notes.txt").read_text() == "mine"
    assert (tmp_path / folders.step_name(7)).read_text() == "a file"


def test_link_loses_the_link_alone(tmp_path: Path) -> None:
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "root"
    whole, torn = finish(elsewhere, 1), elsewhere / "torn"
    torn.mkdir()
    root.mkdir()
    for step, target in ((1, whole), (2, torn), (3, elsewhere / "nowhere")):
        (root / folders.step_name(step)).symlink_to(target)
    (root / folders.step_name(4)).symlink_to(root / folders.step_name(4))
    folders.partial_folder(root, 6).symlink_to(torn)
    finish(root, 5)
    assert folders.discard_unfinished(root) == [folders.partial_folder(root, 6)]
    assert all(folders.remove(root / folders.step_name(step)) for step in (1, 2, 3, 4))
    assert [path.name for path in root.iterdir()] == [folders.step_name(5)]
    assert (whole / manifest.MANIFEST_NAME).is_file()
    assert torn.is_dir()


def test_checkpoint_that_cannot_be_removed_is_no_reason_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(path: Path) -> None:
        raise OSError(16, "Device or resource busy")

    first = finish(tmp_path, 1)
    monkeypatch.setattr("shutil.rmtree", fail)
    assert not folders.remove(first)
    left = tmp_path / f"removed_{first.name}"
    assert caplog.messages == [f"cannot remove all of {left} (Device or resource busy)"]
    assert folders.finished_checkpoints(tmp_path) == []


def test_what_stands_in_the_way_is_found_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / folders.step_name(3)).write_text("passed already")
    (tmp_path / folders.step_name(10)).write_text("in the way")
    (tmp_path / "latest").mkdir()
    with pytest.raises(RootsError) as caught:
        folders.check_room(tmp_path, 5)
    fix = "move it away: ROOTS does not remove what it has not made"
    assert caught.value.lines == (
        f"checkpoints='{tmp_path}/step_00000010': is no folder, and bears the name of a "
        f"checkpoint to come; {fix}",
        f"checkpoints='{tmp_path}/latest': is a folder, and a file of that name points to the "
        f"newest checkpoint; {fix}",
    )


def test_what_comes_into_the_way_later_is_renamed(tmp_path: Path) -> None:
    assert folders.clear_place(tmp_path, 10) is None
    for expected in ("superseded_step_00000010", "superseded_step_00000010_1"):
        (tmp_path / folders.step_name(10)).write_text("in the way")
        moved = folders.clear_place(tmp_path, 10)
        assert moved == tmp_path / expected
        assert moved.read_text() == "in the way"


@pytest.mark.parametrize("content", ["step_00000099", "../../etc", "", "\0"])
def test_pointer_edited_by_hand_changes_nothing(tmp_path: Path, content: str) -> None:
    root = tmp_path / folders.CHECKPOINTS_FOLDER
    newest = finish(root, 2)
    (root / "latest").write_text(content)
    assert folders.resolve_checkpoint(tmp_path) == newest
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (root / "latest").unlink()
    (root / "latest").symlink_to(outside)
    folders.point_latest(root, newest)
    assert (root / "latest").read_text() == "step_00000002"
    assert outside.read_text() == "mine"


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


def test_model_of_hugging_face_leads_to_the_import(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RootsError) as caught:
        folders.resolve_checkpoint(tmp_path)
    assert caught.value.lines == (
        f"checkpoint={str(tmp_path)!r}: is a model of Hugging Face, not a checkpoint; "
        f"bring it in by `roots import {tmp_path} --to CHECKPOINT`",
    )


def test_pointer_names_the_folder_as_deepspeed_reads_it(tmp_path: Path) -> None:
    folders.point_latest(tmp_path, finish(tmp_path, 7))
    assert (tmp_path / "latest").read_text() == "step_00000007"


def test_config_that_several_checkpoints_have_is_read_once(tmp_path: Path) -> None:
    """A start looks at many; each is compared with its manifest all the same."""
    steps = [finish(tmp_path, step, "training: {steps: 7}") for step in (1, 2)]
    other = finish(tmp_path, 3, "training: {steps: 8}")
    first, second = (folders.read_config(each) for each in steps)
    assert first is second
    assert (first.training.steps, folders.read_config(other).training.steps) == (7, 8)
    (steps[1] / manifest.CONFIG_NAME).write_text("training: {steps: 9}", encoding="utf-8")
    with pytest.raises(RootsError, match=r"config\.yaml"):
        folders.read_config(steps[1])


def test_config_of_a_checkpoint_that_is_wrong_is_named_with_its_path(tmp_path: Path) -> None:
    path = finish(tmp_path, 1, "[")
    with pytest.raises(
        RootsError, match=f"config file='{path / manifest.CONFIG_NAME}': is not YAML"
    ):
        folders.read_config(path)


def test_what_was_meant_by_a_path_that_is_no_checkpoint(tmp_path: Path) -> None:
    root = tmp_path / "run" / folders.CHECKPOINTS_FOLDER
    lost = finish(root, 3)
    folders.point_latest(root, lost)

    def rule(given: Path) -> str:
        with pytest.raises(RootsError) as caught:
            folders.resolve_checkpoint(given)
        (line,) = caught.value.lines
        return line.removeprefix(f"checkpoint='{given}': ")

    fix = f"give its folder, {root}"
    assert rule(root / "latest") == f"is a file that names a checkpoint; {fix}"
    (lost / manifest.MANIFEST_NAME).unlink()
    fix = "bring that file back from a copy, or use another checkpoint"
    assert rule(lost) == f"has no manifest.json, so nothing tells whether it is whole; {fix}"
    expected = f"holds no finished checkpoint: step_00000003 has no manifest.json; {fix}"
    assert rule(root) == rule(root.parent) == expected
