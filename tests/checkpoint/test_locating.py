"""A checkpoint that is named by a URL, as a folder of this machine."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from roots.checkpoint import folders, manifest, read_config, resolve_checkpoint
from roots.checkpoint.locating import fetched
from roots.checkpoint.storage import storage_at
from roots.errors import RootsError
from tests.helpers.checkpoints import STATE_NAME, WEIGHTS_NAME, flip_bit, save_checkpoint
from tests.helpers.runs import small_config

LAYOUT = manifest.Layout(1, 1, 1, 0, "fp32")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with checkpoints of steps 2 and 4; the cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = small_config(tmp_path / "data", tmp_path)
    for step in (2, 4):
        save_checkpoint(config, step, layout=LAYOUT)
    return config.run_directory


def refusal(url: str) -> tuple[str, ...]:
    with pytest.raises(RootsError) as caught:
        resolve_checkpoint(url)
    return caught.value.lines


def test_paths_stay_what_they_are(run: Path) -> None:
    assert resolve_checkpoint(run) == run / "checkpoints" / "step_00000004"
    assert resolve_checkpoint(str(run)) == run / "checkpoints" / "step_00000004"


@pytest.mark.parametrize(
    "below, step", [("", 4), ("/checkpoints", 4), ("/checkpoints/step_00000002", 2)]
)
def test_url_of_a_run_or_a_checkpoint(below: str, step: int, run: Path, tmp_path: Path) -> None:
    folder = resolve_checkpoint(f"file://{run}{below}")
    assert folder.parent.parent == tmp_path / "cache" / "roots" / "checkpoints"
    assert folder.name == folders.step_name(step)
    found = manifest.read_manifest(folder)
    assert found.step == step
    assert read_config(folder).run.name == "test"
    # What a model is loaded from, and nothing else.
    assert (folder / WEIGHTS_NAME).is_file()
    assert not (folder / STATE_NAME).exists()
    manifest.check_model(folder)


def test_it_is_fetched_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"file://{run}"
    folder = resolve_checkpoint(url)
    saved = (folder / WEIGHTS_NAME).stat().st_mtime_ns
    assert resolve_checkpoint(url) == folder
    assert (folder / WEIGHTS_NAME).stat().st_mtime_ns == saved
    # All of it, where a run is to go on from it.
    below = folder.parent.parent
    assert fetched(url, below, lambda found: found.resumed_files) == folder
    assert (folder / STATE_NAME).is_file()
    # Another checkpoint of the same name is another folder.
    shutil.rmtree(run / "checkpoints" / "step_00000004")
    config = small_config(run, run.parent, training={"seed": 5})
    save_checkpoint(config, 4, layout=LAYOUT)
    other = resolve_checkpoint(url)
    assert other != folder
    assert read_config(other).training.seed == 5


def test_one_with_any_name_is_itself(run: Path) -> None:
    (run / "checkpoints" / "step_00000002").rename(run.parent / "imported")
    assert resolve_checkpoint(f"file://{run.parent}/imported").name == "imported"


def test_damaged_one_is_refused_by_name(run: Path) -> None:
    damaged = run / "checkpoints" / "step_00000004" / WEIGHTS_NAME
    flip_bit(damaged)
    for _ in range(2):
        assert refusal(f"file://{run}") == (
            f"checkpoint file='file://{damaged}': does not have the checksum that the manifest "
            "records; use another checkpoint of the run",
        )


def test_url_with_nothing_there(tmp_path: Path) -> None:
    url = f"memory:/{tmp_path}"
    assert refusal(url) == (
        f"checkpoint='{url}': is no finished checkpoint and holds none; give the URL of a folder "
        "like step_00000100, or of the folder of a run",
    )


def test_url_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"memory:/{tmp_path}"
    storage = type(storage_at(url))

    def fail(*_: object) -> bool:
        raise TimeoutError("timed out")

    monkeypatch.setattr(storage, "exists", fail)
    assert refusal(url) == (
        f"checkpoint='{url}': cannot be read (timed out); check the URL, the network and the "
        "credentials, then start again",
    )
