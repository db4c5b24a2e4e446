"""The new folder of an import or export: made by one process, whole or not at all."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from roots.errors import RootsError
from roots.exchange.imported_checkpoint import new_folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_second_process_is_refused_and_the_first_ends_well(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with new_folder(target) as first:
        (first / "weights").write_text("mine")
        with pytest.raises(RootsError) as caught, new_folder(target):
            pass
    assert re.fullmatch(
        rf"--to='{target}': in use by pid {os.getpid()} on host \S+ since \S+; wait for that "
        "process, or name another folder",
        str(caught.value),
    )
    assert names(tmp_path) == ["model"]
    assert (target / "weights").read_text() == "mine"


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    left = tmp_path / ".model.partial"
    left.mkdir()
    (left / "half").write_text("")
    with new_folder(tmp_path / "model") as folder:
        assert names(folder) == []
        (folder / "whole").write_text("")
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["whole"]


def test_error_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with new_folder(tmp_path / "deep" / "model") as folder:
            (folder / "half").write_text("")
            raise KeyError("any")

    with pytest.raises(KeyError):
        fail()
    assert names(tmp_path) == []


def test_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RootsError) as caught, new_folder(tmp_path / "file" / "model"):
        pass
    assert str(caught.value).startswith(f"--to='{tmp_path}/file/model': cannot be written (")
