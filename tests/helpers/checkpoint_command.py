"""`roots checkpoint` as a user calls it, and what of its output follows from the checkpoints."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from roots.checkpoint import folders, manifest
from roots.cli.main import main


def folder_of(run: Path, step: int) -> Path:
    return run / folders.CHECKPOINTS_FOLDER / folders.step_name(step)


def minute_of(saved: int) -> str:
    """A time in seconds since the epoch, as people read it here."""
    return datetime.fromtimestamp(saved).astimezone().strftime("%Y-%m-%d %H:%M")


def call(*words: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["checkpoint", *map(str, words)])
    return int(caught.value.code or 0)


def printed(capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    assert call(*words) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out.splitlines()


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    assert call(*words) == 2
    return [line.removeprefix("roots: error: ") for line in capsys.readouterr().err.splitlines()]


def size_of(folder: Path) -> int:
    return manifest.read_manifest(folder).total_bytes
