"""What `roots checkpoint` says of checkpoints at a URL."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from roots.checkpoint import manifest
from roots.checkpoint.storage import storage_at
from roots.checkpoint.stored import StoredCheckpoints
from tests.helpers.checkpoint_command import folder_of, minute_of, printed, refused, size_of
from tests.helpers.checkpoints import STATE_NAME, flip_bit, save_checkpoint
from tests.helpers.places import place_of
from tests.helpers.runs import small_config

LAYOUT = manifest.Layout(2, 1, 1, 1, "bf16")
SAVED = 1_700_000_000
FIX = "use another checkpoint of the run"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with checkpoints of steps 4 and 6."""
    config = small_config(tmp_path / "data", tmp_path)
    for step, loss in {4: None, 6: 2.25}.items():
        save_checkpoint(config, step, layout=LAYOUT, loss=loss, saved=SAVED)
    return config.run_directory


@pytest.fixture
def url(run: Path, tmp_path: Path) -> str:
    """A copy of the run's checkpoints in memory, and nothing of the run here."""
    place = f"{place_of('memory', tmp_path)}/run"
    for step in (4, 6):
        StoredCheckpoints(storage_at(place)).put(folder_of(run, step))
    return place


def test_list_and_show_at_a_url(url: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, *lines = printed(capsys, "list", url)
    layout = LAYOUT.describe()
    sizes = [f"{size_of(folder_of(run, step)):,}" for step in (4, 6)]
    assert [re.split(r"  +", line) for line in lines] == [
        ["step_00000004", minute_of(SAVED), sizes[0], "-", "complete", layout],
        ["step_00000006", minute_of(SAVED), sizes[1], "2.2500", "complete", layout],
    ]
    here, there = (
        json.loads("\n".join(printed(capsys, "show", given, "--json")))
        for given in (folder_of(run, 6), url)
    )
    assert there == {**here, "path": f"{url}/step_00000006", "file_time": None}
    words = printed(capsys, "show", url)
    assert words[0].split() == ["checkpoint", f"{url}/step_00000006"]


def test_verify_at_a_url(url: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {step: f"{size_of(folder_of(run, step)):,} bytes in 3 files" for step in (4, 6)}
    assert printed(capsys, "verify", url) == [
        f"{url}/step_0000000{step}: {size}, as it was saved" for step, size in sizes.items()
    ]
    flip_bit(folder_of(run, 6) / STATE_NAME)
    name = f"step_00000006/{STATE_NAME}"
    storage_at(url).put(folder_of(run, 6) / STATE_NAME, name)
    assert refused(capsys, "verify", url) == [
        f"checkpoint file='{url}/{name}': does not have the checksum that the manifest records; "
        f"{FIX}"
    ]


def test_one_that_has_lost_its_manifest_is_damaged(
    url: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage_at(url).remove(f"step_00000006/{manifest.MANIFEST_NAME}")
    line = manifest.no_manifest(f"{url}/step_00000006")
    _, first, second, last = printed(capsys, "list", url)
    assert first.startswith("step_00000004 ")
    assert second.split() == ["step_00000006", "-", "-", "-", "damaged", "-"]
    assert last == line
    assert refused(capsys, "verify", url) == [line]
    # The newest that is whole.
    assert printed(capsys, "show", url)[0].split()[1] == f"{url}/step_00000004"
    storage_at(url).remove(f"step_00000004/{manifest.MANIFEST_NAME}")
    assert refused(capsys, "show", url) == [
        f"checkpoint='{url}': holds no finished checkpoint: step_00000006 has no manifest.json; "
        "bring that file back from a copy, or use another checkpoint"
    ]


def test_prune_takes_no_url(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "prune", url, "--keep-last", 1) == [
        f"checkpoint='{url}': is a URL, and what lies there follows its run; give the folder of "
        "the run"
    ]
