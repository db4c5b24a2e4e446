"""What a manifest says of the layout, and what one from before the schedules is taken for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from roots.checkpoint import manifest
from roots.errors import RootsError
from tests.helpers.manifests import edit_manifest


def test_layout_tells_of_stages_only_what_is_not_as_usual() -> None:
    plain = manifest.Layout(2, 2, 1, 1, "fp32")
    assert plain.describe() == "tensor 2 x pipeline 2 x data 1, ZeRO 1, fp32"
    folded = manifest.Layout(1, 2, 1, 1, "bf16", "dualpipev", "[1, 2, 1, 1]")
    assert folded.describe() == (
        "tensor 1 x pipeline 2 x data 1, ZeRO 1, bf16, dualpipev, partition [1, 2, 1, 1]"
    )


@pytest.mark.parametrize("loss", [None, 3, 2.5])
def test_held_out_loss_is_read_back(tmp_path: Path, loss: float | None) -> None:
    layout = manifest.Layout(1, 1, 1, 1, "fp32")
    saved = manifest.Manifest(3, 24, layout, {}, loss)
    manifest.write_manifest(tmp_path, saved)
    assert manifest.read_manifest(tmp_path) == saved


def test_manifest_from_before_held_out_losses_has_none(tmp_path: Path) -> None:
    change(tmp_path, lambda tree: tree.pop("evaluation"))
    assert manifest.read_manifest(tmp_path).evaluation is None


@pytest.mark.parametrize("loss", [True, "2.5", [2.5]])
def test_held_out_loss_is_a_number(tmp_path: Path, loss: object) -> None:
    change(tmp_path, lambda tree: tree.update(evaluation=loss))
    with pytest.raises(RootsError) as caught:
        manifest.read_manifest(tmp_path)
    assert caught.value.lines == (
        f"manifest='{tmp_path}/manifest.json': is not readable (TypeError: the held-out loss is "
        "no number); use another checkpoint of the run",
    )


@pytest.mark.parametrize("saved", [True, "2026", 1.5, -1, 10**15])
def test_time_of_saving_is_a_time(tmp_path: Path, saved: object) -> None:
    change(tmp_path, lambda tree: tree.update(saved=saved))
    with pytest.raises(manifest.DamagedError) as caught:
        manifest.read_manifest(tmp_path)
    assert caught.value.lines == (
        f"manifest='{tmp_path}/manifest.json': is not readable (TypeError: the time of saving is "
        "none); use another checkpoint of the run",
    )


def test_manifest_from_before_times_has_none(tmp_path: Path) -> None:
    change(tmp_path, lambda tree: tree.pop("saved"))
    assert manifest.read_manifest(tmp_path).saved is None


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    layout = manifest.Layout(1, 1, 1, 1, "fp32")
    manifest.write_manifest(folder, manifest.Manifest(3, 24, layout, {}, 2.5))
    edit_manifest(folder, edit)


def test_manifest_without_a_schedule_is_of_1f1b(tmp_path: Path) -> None:
    layout = manifest.Layout(1, 2, 1, 1, "fp32")
    manifest.write_manifest(tmp_path, manifest.Manifest(3, 24, layout, {}))

    def drop(tree: dict[str, Any]) -> None:
        del tree["layout"]["schedule"], tree["layout"]["partition"]

    edit_manifest(tmp_path, drop)
    assert manifest.read_manifest(tmp_path).layout == layout


def test_manifest_from_before_its_digest_is_read(tmp_path: Path) -> None:
    change(tmp_path, lambda tree: None)
    path = tmp_path / manifest.MANIFEST_NAME
    tree = json.loads(path.read_text(encoding="utf-8"))
    before = manifest.read_manifest(tmp_path)
    del tree["sha256"]
    path.write_text(json.dumps(tree), encoding="utf-8")
    with pytest.raises(manifest.DamagedError, match="it records no checksum of its own"):
        manifest.read_manifest(tmp_path)
    tree["version"] = 2
    path.write_text(json.dumps(tree), encoding="utf-8")
    assert manifest.read_manifest(tmp_path) == replace(before, version=2)


def test_no_flipped_bit_of_a_manifest_passes_for_other_values(tmp_path: Path) -> None:
    """Every byte, one bit of each: an error, or a place where it does not matter."""
    change(tmp_path, lambda tree: None)
    path = tmp_path / manifest.MANIFEST_NAME
    content, whole = path.read_bytes(), manifest.read_manifest(tmp_path)
    noticed = 0
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            assert manifest.read_manifest(tmp_path) == whole
        except manifest.DamagedError:
            noticed += 1
    assert noticed > 0.8 * len(content)


def test_manifest_that_cannot_be_read_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(tmp_path, lambda tree: None)

    def fail(path: Path, **_: object) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(manifest.DamagedError) as caught:
        manifest.read_manifest(tmp_path)
    assert caught.value.lines == (
        f"manifest='{tmp_path}/manifest.json': cannot be read (Input/output error); "
        "use another checkpoint of the run",
    )
