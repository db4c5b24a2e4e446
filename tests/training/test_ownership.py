"""A run folder belongs to one run at a time."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from roots.errors import ExitCode, RootsError
from roots.parallel.mesh import Mesh
from roots.training.checkpointing import Checkpointer
from roots.training.ownership import own_run_folder
from tests.helpers.runs import small_config


def test_second_run_is_refused_before_it_changes_anything(tmp_path: Path) -> None:
    config = small_config(tmp_path / "data", tmp_path)
    with ExitStack() as first, ExitStack() as second:
        own_run_folder(config, Mesh.single(), first)
        with pytest.raises(RootsError) as caught:
            own_run_folder(config, Mesh.single(), second)
        assert [path.name for path in config.run_directory.iterdir()] == ["run.lock"]
    (line,) = caught.value.lines
    assert line.startswith(f"run folder='{config.run_directory}': in use by pid {os.getpid()} on ")
    assert line.endswith("; wait for that run or end it, or set another run.name")
    assert caught.value.exit_code is ExitCode.BAD_INPUT
    assert not config.run_directory.exists()


def test_run_that_lost_its_folder_does_not_save_into_it(tmp_path: Path) -> None:
    config = small_config(tmp_path / "data", tmp_path)
    with ExitStack() as stack:
        ownership = own_run_folder(config, Mesh.single(), stack)
        assert ownership is not None
        text = ownership.path.read_text()
        ownership.path.write_text(text.replace(ownership.mine.token, "another"))
        checkpointer = Checkpointer(config, Mesh.single(), ownership)
        with pytest.raises(RootsError, match="was taken over by pid"):
            checkpointer._make_room(3)
    assert not checkpointer.root.exists()
