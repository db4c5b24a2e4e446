"""What a manifest says of the layout, and what one from before the schedules is taken for."""

from __future__ import annotations

import json
from pathlib import Path

from roots.checkpoint import manifest


def test_layout_tells_of_stages_only_what_is_not_as_usual() -> None:
    plain = manifest.Layout(2, 2, 1, 1, "fp32")
    assert plain.describe() == "tensor 2 x pipeline 2 x data 1, ZeRO 1, fp32"
    folded = manifest.Layout(1, 2, 1, 1, "bf16", "dualpipev", "[1, 2, 1, 1]")
    assert folded.describe() == (
        "tensor 1 x pipeline 2 x data 1, ZeRO 1, bf16, dualpipev, partition [1, 2, 1, 1]"
    )


def test_manifest_without_a_schedule_is_of_1f1b(tmp_path: Path) -> None:
    layout = manifest.Layout(1, 2, 1, 1, "fp32")
    manifest.write_manifest(tmp_path, manifest.Manifest(3, 24, layout, {}))
    path = tmp_path / manifest.MANIFEST_NAME
    tree = json.loads(path.read_text(encoding="utf-8"))
    del tree["layout"]["schedule"], tree["layout"]["partition"]
    path.write_text(json.dumps(tree), encoding="utf-8")
    assert manifest.read_manifest(tmp_path).layout == layout
