"""What a save finds where it is to go, before anything is written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from roots.errors import ExitCode, RootsError
from roots.parallel.mesh import Mesh
from roots.training.checkpointing import Checkpointer
from tests.helpers.runs import small_config


@pytest.mark.parametrize("call", ["clear_place", "set_aside_after", "discard_unfinished"])
@pytest.mark.parametrize(
    ("number", "cure"),
    [
        (errno.EROFS, "make its file system writable"),
        (errno.EPERM, "give this user the rights to it"),
        (errno.EIO, "check the path and its disk"),
    ],
)
def test_place_that_cannot_be_made_is_one_line(
    call: str, number: int, cure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number), "a/file")

    checkpointer = Checkpointer(small_config(tmp_path / "data", tmp_path), Mesh.single())
    monkeypatch.setattr(f"roots.checkpoint.folders.{call}", refuse)
    with pytest.raises(RootsError) as caught:
        checkpointer._make_room(3)
    assert caught.value.exit_code is ExitCode.NOT_SAVED
    path = tmp_path / "test" / "checkpoints" / "step_00000003"
    assert caught.value.lines == (
        f"checkpoint={str(path)!r}: could not be written ({os.strerror(number)}); {cure}; the "
        "checkpoints before it are untouched",
    )
