"""Checkpoints at a storage: whole or absent, fetched as they were saved or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from roots.checkpoint import folders, manifest
from roots.checkpoint.manifest import MANIFEST_NAME, Manifest
from roots.checkpoint.storage import storage_at
from roots.checkpoint.stored import StoredCheckpoints
from tests.helpers.checkpoints import STATE_NAME, WEIGHTS_NAME, flip_bit, save_checkpoint
from tests.helpers.manifests import edit_manifest
from tests.helpers.places import KINDS, Watched, place_of
from tests.helpers.runs import small_config

LAYOUT = manifest.Layout(1, 1, 1, 0, "fp32")
NAME = folders.step_name(4)
MARK = f"{NAME}.partial"
FIX = "use another checkpoint of the run"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_checkpoint(small_config(tmp_path / "data", tmp_path), 4, layout=LAYOUT)


def watched(kind: str, tmp_path: Path) -> tuple[StoredCheckpoints, Watched]:
    storage = Watched(storage_at(place_of(kind, tmp_path)))
    return StoredCheckpoints(storage), storage


def contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def everything(found: Manifest) -> list[str]:
    return sorted(found.files)


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind: str, folder: Path, tmp_path: Path) -> None:
    stored, storage = watched(kind, tmp_path)
    stored.put(folder)
    assert stored.names() == [NAME]
    assert storage.names("put")[0] == MARK
    assert storage.names("put")[-1] == f"{NAME}/{MANIFEST_NAME}"
    found = stored.manifest(NAME)
    assert found == manifest.read_manifest(folder)
    assert stored.damage(NAME, found) == stored.all_damage(NAME, found) == []
    target = tmp_path / "fetched"
    stored.fetch(NAME, target, lambda found: found.weights)
    assert set(contents(target)) == {WEIGHTS_NAME, MANIFEST_NAME}
    # What is there already is not fetched again.
    storage.done.clear()
    stored.fetch(NAME, target, everything)
    assert f"{NAME}/{WEIGHTS_NAME}" not in storage.names("get")
    assert contents(target) == contents(folder)
    storage.done.clear()
    stored.remove(NAME)
    assert storage.names("remove") == [f"{NAME}/{MANIFEST_NAME}", NAME, MARK]
    assert stored.names() == stored.lost() == []


@pytest.mark.parametrize("kind", KINDS)
def test_torn_copy_is_absent_and_made_anew(kind: str, folder: Path, tmp_path: Path) -> None:
    stored, storage = watched(kind, tmp_path)
    files = len(manifest.read_manifest(folder).files)
    for fails in range(1, files + 3):
        storage.done.clear()
        storage.fails = fails
        with pytest.raises(ConnectionError):
            stored.put(folder)
        assert stored.names() == stored.lost() == []
    with pytest.raises(manifest.DamagedError) as caught:
        stored.manifest(NAME)
    where = f"{storage.where}/{NAME}"
    assert caught.value.lines == (
        f"checkpoint='{where}': is no finished checkpoint (it has no {MANIFEST_NAME}); "
        "give a folder like RUN/checkpoints/step_00000100, or the folder of a run",
    )
    # Nor does anything of a torn one stay in that which takes its place.
    storage.fails = None
    storage.put(folder / STATE_NAME, f"{NAME}/optimizer/rank_00001.safetensors")
    stored.put(folder)
    assert set(storage.sizes(NAME)) == set(contents(folder))


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_refused_by_name(kind: str, folder: Path, tmp_path: Path) -> None:
    stored, storage = watched(kind, tmp_path)
    stored.put(folder)
    flip_bit(folder / STATE_NAME)
    storage.put(folder / STATE_NAME, f"{NAME}/{STATE_NAME}")
    storage.remove(f"{NAME}/{WEIGHTS_NAME}")
    where = f"{storage.where}/{NAME}"
    missing = f"checkpoint file='{where}/{WEIGHTS_NAME}': is missing; {FIX}"
    changed = (
        f"checkpoint file='{where}/{STATE_NAME}': does not have the checksum that the manifest "
        f"records; {FIX}"
    )
    found = stored.manifest(NAME)
    assert stored.damage(NAME, found) == [missing]
    assert stored.all_damage(NAME, found) == [changed, missing]
    with pytest.raises(manifest.DamagedError) as caught:
        stored.fetch(NAME, tmp_path / "fetched", everything)
    assert caught.value.lines == (changed, missing)
    # What is good stays for another try, but is no checkpoint.
    assert set(contents(tmp_path / "fetched")) == {manifest.CONFIG_NAME}


@pytest.mark.parametrize("kind", KINDS)
def test_lost_manifest_is_no_copy_that_did_not_end(
    kind: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, storage = watched(kind, tmp_path)
    stored.put(folder)
    storage.remove(f"{NAME}/{MANIFEST_NAME}")
    assert (stored.names(), stored.lost()) == ([], [NAME])
    stored.put(folder)
    assert (stored.names(), stored.lost()) == ([NAME], [])

    def end(name: str) -> None:
        """What a removal or a renaming does that is killed in its midst."""
        storage.remove(f"{name}/{MANIFEST_NAME}")
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "move", lambda name, to: end(name))
    with pytest.raises(KeyboardInterrupt):
        stored.set_aside(NAME)
    assert stored.names() == stored.lost() == []
    stored.put(folder)
    assert stored.names() == [NAME]
    monkeypatch.setattr(stored, "_remove", end)
    with pytest.raises(KeyboardInterrupt):
        stored.remove(NAME)
    assert stored.names() == stored.lost() == []


def test_names_lead_nowhere_else(folder: Path, tmp_path: Path) -> None:
    stored, storage = watched("memory", tmp_path)
    stored.put(folder)

    def escape(tree: dict[str, dict[str, object]]) -> None:
        tree["files"]["../outside"] = tree["files"].pop(WEIGHTS_NAME)

    edit_manifest(folder, escape)
    storage.put(folder / MANIFEST_NAME, f"{NAME}/{MANIFEST_NAME}")
    with pytest.raises(manifest.DamagedError) as caught:
        stored.fetch(NAME, tmp_path / "fetched", everything)
    assert caught.value.lines == (
        f"manifest='{storage.where}/{NAME}/{MANIFEST_NAME}': is not readable (ValueError: names "
        f"'../outside', which is no file of a checkpoint); {FIX}",
    )
    assert not (tmp_path / "outside").exists()
    assert not (tmp_path / "fetched").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_one_set_aside_is_kept_under_another_name(kind: str, folder: Path, tmp_path: Path) -> None:
    stored, storage = watched(kind, tmp_path)
    for name in (f"superseded_{NAME}", f"superseded_{NAME}_1"):
        stored.put(folder)
        assert stored.set_aside(NAME) == name
        assert stored.names() == []
        assert set(storage.sizes(name)) == set(contents(folder))
