"""A run folder belongs to one run at a time."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from roots.config.load import dump_config
from roots.config.run import RunConfig
from roots.errors import ExitCode, RootsError
from roots.parallel.mesh import Mesh
from roots.training.checkpointing import Checkpointer
from roots.training.ownership import open_run
from tests.helpers.runs import small_config


def test_second_run_is_refused_before_it_changes_anything(tmp_path: Path) -> None:
    config = small_config(tmp_path / "data", tmp_path)
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(open_run(config, 0, time.time()))
        text = (config.run_directory / "ledger.jsonl").read_text()
        names = {"ledger.jsonl", "ledger.reserve", "run.lock"}
        refused = second.enter_context(open_run(config, 0, time.time()))
        refused.ledger.start()
        with pytest.raises(RootsError) as caught:
            refused.own()
        assert {path.name for path in config.run_directory.iterdir()} == names
        assert (config.run_directory / "ledger.jsonl").read_text() == text
    (line,) = caught.value.lines
    assert line.startswith(f"run folder='{config.run_directory}': in use by pid {os.getpid()} on ")
    assert line.endswith("; wait for that run or end it, or set another run.name")
    assert caught.value.exit_code is ExitCode.BAD_INPUT
    assert {path.name for path in config.run_directory.iterdir()} == {"ledger.jsonl"}


def lines(config: RunConfig) -> list[dict[str, Any]]:
    text = (config.run_directory / "ledger.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_start_is_in_the_ledger_before_torch_is_imported(tmp_path: Path) -> None:
    """A process that cannot import it ends there, with its code."""
    config = small_config(tmp_path / "data", tmp_path)
    (tmp_path / "run.yaml").write_text(dump_config(config))
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['roots', 'train', 'run.yaml'];"
        "from roots.cli.main import main; main()"
    )
    lone = {**os.environ, "RANK": "0", "WORLD_SIZE": "1"}
    before = time.time()
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=lone, check=False)
    assert ended.returncode == ExitCode.BUG
    start, end = lines(config)
    assert start["event"] == "start"
    assert before - 0.1 <= start["started"] <= start["time"]
    assert (end["event"], end["code"]) == ("end", ExitCode.BUG)


def test_next_start_finds_when_one_that_was_killed_last_lived(tmp_path: Path) -> None:
    config = small_config(tmp_path / "data", tmp_path)
    child = os.fork()
    if child == 0:
        with open_run(config, 0, time.time()):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    os.utime(config.run_directory / "run.lock", (2e9, 2e9))
    with open_run(config, 0, time.time()):
        pass
    assert [(line["event"], line.get("found")) for line in lines(config)] == [
        ("start", None),
        ("start", 2e9),
        ("end", None),
    ]


def test_rank_that_outlives_rank_0_tells_its_end(tmp_path: Path) -> None:
    config = small_config(tmp_path / "data", tmp_path)
    with open_run(config, 0, time.time()), open_run(config, 1, time.time()) as other:
        assert other.own() is None
        other.ledger.marks.outlived(7, "rank 0 died")
        assert (lines(config)[-1]["code"], lines(config)[-1]["cause"]) == (7, "rank 0 died")


def test_run_that_lost_its_folder_does_not_save_into_it(tmp_path: Path) -> None:
    config = small_config(tmp_path / "data", tmp_path)
    with ExitStack() as stack:
        ownership = stack.enter_context(open_run(config, 0, time.time())).own()
        assert ownership is not None
        text = ownership.path.read_text()
        ownership.path.write_text(text.replace(ownership.mine.token, "another"))
        checkpointer = Checkpointer(config, Mesh.single(), ownership)
        with pytest.raises(RootsError, match="was taken over by pid"):
            checkpointer._make_room(3)
    assert not checkpointer.root.exists()


def refusal(directory: Path) -> tuple[str, ExitCode]:
    config = small_config(directory / "data", directory)
    with ExitStack() as stack, pytest.raises(RootsError) as caught:
        stack.enter_context(open_run(config, 0, time.time())).own()
    (line,) = caught.value.lines
    return line, caught.value.exit_code


def test_run_directory_that_is_a_file_is_named(tmp_path: Path) -> None:
    given = tmp_path / "two.yaml"
    given.touch()
    assert refusal(given) == (
        f"run.directory='{given}': the run's folder {given}/test cannot be written (Not a "
        "directory); set it to a folder, which a file is not",
        ExitCode.BAD_INPUT,
    )


def test_file_of_the_name_of_the_run_is_told(tmp_path: Path) -> None:
    (tmp_path / "test").touch()
    assert refusal(tmp_path) == (
        f"run.name='test': the run's folder {tmp_path}/test cannot be written (File exists); move "
        "that file away, or set another",
        ExitCode.BAD_INPUT,
    )


def test_run_directory_where_nothing_can_be_made_is_named() -> None:
    assert refusal(Path("/proc/nothere")) == (
        "run.directory='/proc/nothere': the run's folder /proc/nothere/test cannot be written (No "
        "such file or directory); check the path and its disk, or set it to another folder",
        ExitCode.BAD_INPUT,
    )


@pytest.mark.parametrize(
    ("number", "fix", "code"),
    [
        (errno.EACCES, "give this user the rights to it", 2),
        (errno.EROFS, "make its file system writable", 2),
        (errno.ENOSPC, "free some disk space", 6),
    ],
)
def test_what_refuses_a_run_directory_decides_the_fix(
    number: int, fix: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("roots.lock.os.open", refuse)
    line, found = refusal(tmp_path)
    monkeypatch.undo()
    assert found == code
    assert line == (
        f"run.directory='{tmp_path}': the run's folder {tmp_path}/test cannot be written "
        f"({os.strerror(number)}); {fix}, or set it to another folder"
    )
