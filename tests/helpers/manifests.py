"""Manifests as another ROOTS would have written them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from roots.checkpoint import manifest


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Write the manifest of `folder` anew, with the digest of its tree after `edit`."""
    path = folder / manifest.MANIFEST_NAME
    tree = json.loads(path.read_text(encoding="utf-8"))
    edit(tree)
    path.write_text(manifest.with_digest(tree), encoding="utf-8")


def turn_into_version_1(folder: Path) -> None:
    """Leave of a checkpoint saved with checkpoint.deepspeed_files what version 1 had."""

    def edit(tree: dict[str, Any]) -> None:
        tree["version"] = 1
        del tree["state"]
        optimizer = f"{manifest.OPTIMIZER_FOLDER}/"
        tree["files"] = {
            name: record for name, record in tree["files"].items() if not name.startswith(optimizer)
        }

    edit_manifest(folder, edit)
