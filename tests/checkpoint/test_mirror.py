"""The mirror follows its run, and a run without anything good goes on from it."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from roots.checkpoint import folders, manifest, retention
from roots.checkpoint.manifest import MANIFEST_NAME
from roots.checkpoint.mirror import Mirror
from roots.checkpoint.retention import Keep
from roots.checkpoint.storage import LocalStorage, storage_at
from roots.checkpoint.stored import StoredCheckpoints
from roots.config import RunConfig
from roots.errors import RootsError
from tests.helpers.checkpoints import STATE_NAME, flip_bit, save_checkpoint
from tests.helpers.places import Watched, place_of
from tests.helpers.runs import small_config

KEEP_ALL = Keep(0)
LAYOUT = manifest.Layout(1, 1, 1, 0, "fp32")


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return small_config(tmp_path / "data", tmp_path)


@pytest.fixture
def storage(tmp_path: Path) -> Watched:
    return Watched(storage_at(place_of("memory", tmp_path)))


def mirror_of(config: RunConfig, storage: Watched, keep: Keep = KEEP_ALL) -> Mirror:
    return Mirror(root_of(config), StoredCheckpoints(storage), keep)


def root_of(config: RunConfig) -> Path:
    return config.run_directory / folders.CHECKPOINTS_FOLDER


def save(config: RunConfig, *steps: int, loss: float | None = None) -> None:
    for step in steps:
        save_checkpoint(config, step, layout=LAYOUT, loss=loss)


def steps_of(mirror: Mirror) -> list[int]:
    return list(map(folders.step_named, mirror.stored.names()))


def test_newest_is_copied_first_and_nothing_twice(config: RunConfig, storage: Watched) -> None:
    mirror = mirror_of(config, storage)
    mirror.follow()
    assert storage.done == []
    save(config, 2, 4)
    mirror.follow()
    assert steps_of(mirror) == [2, 4]
    manifests = [name for name in storage.names("put") if name.endswith(MANIFEST_NAME)]
    assert manifests == [f"step_0000000{step}/{MANIFEST_NAME}" for step in (4, 2)]
    storage.done.clear()
    mirror.follow()
    assert storage.done == []
    # Nor does the next start, which has to look.
    mirror_of(config, storage).follow()
    assert storage.names("put") == []


@pytest.mark.parametrize("keep", [Keep(2), Keep(1, every_steps=4), Keep(1, best=1), Keep(0)])
def test_what_the_run_removes_is_removed_there(
    keep: Keep, config: RunConfig, storage: Watched
) -> None:
    mirror = mirror_of(config, storage, keep)
    for step, loss in {2: 3.0, 4: 2.0, 6: 1.0, 8: 2.5, 10: 2.6}.items():
        save(config, step, loss=loss)
        retention.apply(root_of(config), keep)
        mirror.follow()
        here = [folders.step_of(path) for path in folders.finished_checkpoints(root_of(config))]
        assert steps_of(mirror) == here
    # A machine that has nothing but the newest removes nothing more.
    for step in here[:-1]:
        shutil.rmtree(root_of(config) / folders.step_name(step))
    mirror_of(config, storage, keep).follow()
    assert steps_of(mirror) == here


def test_nothing_is_removed_where_the_newest_is_torn(config: RunConfig, storage: Watched) -> None:
    save(config, 2, 4)
    mirror_of(config, storage).follow()
    storage.remove(f"{folders.step_name(4)}/{STATE_NAME}")
    mirror = mirror_of(config, storage, Keep(1))
    with pytest.raises(RootsError, match=f"{STATE_NAME}': is missing"):
        mirror.follow()
    assert steps_of(mirror) == [2, 4]


def test_left_course_is_set_aside(
    config: RunConfig, storage: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    save(config, 2, 4, 6)
    mirror_of(config, storage).follow()
    shutil.rmtree(root_of(config) / folders.step_name(6))
    shutil.rmtree(root_of(config) / folders.step_name(4))
    save(config, 4, loss=1.0)
    mirror = mirror_of(config, storage)
    mirror.follow()
    assert steps_of(mirror) == [2, 4]
    assert mirror.stored.manifest(folders.step_name(4)).evaluation == 1.0
    aside = [f"superseded_{folders.step_name(step)}" for step in (4, 6)]
    assert sorted(set(storage.folders()) - set(mirror.stored.names())) == aside
    assert caplog.messages == [
        f"kept a checkpoint of another course at {storage.where}/{name}" for name in aside
    ]


def test_one_that_the_run_removes_meanwhile_is_no_error(
    config: RunConfig, storage: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(config, 2, 4)
    put = storage.put

    def remove_then_put(source: Path, name: str) -> None:
        if name.startswith(folders.step_name(2)):
            folders.remove(root_of(config) / folders.step_name(2))
        put(source, name)

    monkeypatch.setattr(storage, "put", remove_then_put)
    mirror = mirror_of(config, storage)
    mirror.follow()
    assert storage.folders() == [folders.step_name(4)]


def test_one_that_is_being_copied_stays(
    config: RunConfig, storage: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where copying takes longer than from save to save, some are copied none the less."""
    save(config, 2)
    mirror, keep = mirror_of(config, storage, Keep(1)), Keep(1)
    started, go_on = threading.Event(), threading.Event()
    put = storage.put

    def wait_then_put(source: Path, name: str) -> None:
        started.set()
        assert go_on.wait(60)
        put(source, name)

    monkeypatch.setattr(storage, "put", wait_then_put)
    with mirror:
        mirror.wake()
        assert started.wait(60)
        save(config, 4)
        assert retention.apply(root_of(config), keep, mirror.held) == []
        go_on.set()
    assert steps_of(mirror) == [4]
    assert folders.finished_checkpoints(root_of(config)) == [root_of(config) / "step_00000004"]
    # Step 2 was whole there before it was removed.
    assert f"step_00000002/{MANIFEST_NAME}" in storage.names("put")


def test_what_fails_is_a_warning_and_tried_again(
    config: RunConfig, storage: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    save(config, 2)
    storage.fails = 1
    with mirror_of(config, storage) as mirror:
        mirror.wake()
    assert caplog.messages == [
        f"checkpoint.mirror='{storage.where}': not all checkpoints are copied there "
        f"({storage.where}: no route); tried again after the next save, or when the run goes on"
    ]
    assert steps_of(mirror) == []
    storage.fails = None
    with mirror_of(config, storage) as mirror:
        mirror.wake()
    assert steps_of(mirror) == [2]


def test_every_failed_save_is_told_once_with_its_reason(
    config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    where = f"{tmp_path}/file/test"
    mirror = Mirror(root_of(config), StoredCheckpoints(LocalStorage(Path(where))), KEEP_ALL)
    save(config, 2)
    for _ in range(2):
        mirror.wake()
        with mirror:
            pass
        mirror._thread, mirror._closing = None, False
    line = (
        f"checkpoint.mirror='{where}': not all checkpoints are copied there (Not a directory: "
        f"{where}); tried again after the next save, or when the run goes on"
    )
    assert caplog.messages == [line, line]


def test_bug_of_the_run_does_not_wait(
    config: RunConfig, storage: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(config, 2)
    go_on = threading.Event()
    monkeypatch.setattr(storage, "put", lambda source, name: go_on.wait(60))

    def end(error: Exception) -> None:
        with mirror_of(config, storage) as mirror:
            mirror.wake()
            raise error

    with pytest.raises(ZeroDivisionError):
        end(ZeroDivisionError())
    go_on.set()


def test_newest_good_one_is_fetched(config: RunConfig, storage: Watched) -> None:
    save(config, 2, 4, 6)
    mirror = mirror_of(config, storage)
    mirror.follow()
    damaged = root_of(config) / folders.step_name(6) / STATE_NAME
    flip_bit(damaged)
    storage.put(damaged, f"{folders.step_name(6)}/{STATE_NAME}")
    shutil.rmtree(root_of(config))
    root_of(config).mkdir()
    partial, lines = mirror.fetch_newest()
    assert partial is not None
    assert partial == folders.partial_folder(root_of(config), 4)
    assert [path.name for path in root_of(config).iterdir()] == [partial.name]
    found = manifest.read_manifest(partial)
    assert found.step == 4
    assert manifest.damage_of(partial, found, found.resumed_files) == []
    assert lines == [
        f"checkpoint file='{storage.where}/step_00000006/{STATE_NAME}': does not have the checksum "
        "that the manifest records; use another checkpoint of the run"
    ]


def test_lost_manifest_is_named_and_passed_by(config: RunConfig, storage: Watched) -> None:
    save(config, 2, 4)
    mirror = mirror_of(config, storage)
    mirror.follow()
    storage.remove(f"{folders.step_name(4)}/{MANIFEST_NAME}")
    shutil.rmtree(root_of(config))
    root_of(config).mkdir()
    line = manifest.no_manifest(f"{storage.where}/step_00000004")
    partial, lines = mirror.fetch_newest()
    assert (partial, lines) == (folders.partial_folder(root_of(config), 2), [line])
    # Where the run still has it, it is copied again.
    save(config, 4)
    mirror.follow()
    assert steps_of(mirror) == [2, 4]


def test_empty_place_has_nothing_to_go_on_from(config: RunConfig, storage: Watched) -> None:
    assert mirror_of(config, storage).fetch_newest() == (None, [])


def test_place_that_cannot_be_read_is_an_error(
    config: RunConfig, storage: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that began anew there would lose what it has trained."""

    def fail() -> list[str]:
        raise TimeoutError("timed out")

    monkeypatch.setattr(storage, "folders", fail)
    with pytest.raises(RootsError) as caught:
        mirror_of(config, storage).fetch_newest()
    assert caught.value.lines == (
        f"checkpoint.mirror='{storage.where}': cannot be read (timed out); check the URL, the "
        "network and the credentials, then start again",
    )
