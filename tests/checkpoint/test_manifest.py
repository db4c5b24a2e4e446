"""What a manifest says of the layout, and what one from before the schedules is taken for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from roots.checkpoint import manifest
from roots.errors import RootsError


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


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    layout = manifest.Layout(1, 1, 1, 1, "fp32")
    manifest.write_manifest(folder, manifest.Manifest(3, 24, layout, {}, 2.5))
    path = folder / manifest.MANIFEST_NAME
    tree = json.loads(path.read_text(encoding="utf-8"))
    edit(tree)
    path.write_text(json.dumps(tree), encoding="utf-8")


def test_manifest_without_a_schedule_is_of_1f1b(tmp_path: Path) -> None:
    layout = manifest.Layout(1, 2, 1, 1, "fp32")
    manifest.write_manifest(tmp_path, manifest.Manifest(3, 24, layout, {}))
    path = tmp_path / manifest.MANIFEST_NAME
    tree = json.loads(path.read_text(encoding="utf-8"))
    del tree["layout"]["schedule"], tree["layout"]["partition"]
    path.write_text(json.dumps(tree), encoding="utf-8")
    assert manifest.read_manifest(tmp_path).layout == layout
