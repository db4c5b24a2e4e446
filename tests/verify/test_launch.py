"""Ranks of a proof: their logs, their mistakes, and what is said of one that fails."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from roots.config import parse_config
from roots.config.shrink import shrink
from roots.errors import ExitCode, RootsError
from roots.verify import launch as launching
from roots.verify.launch import launch
from roots.verify.rank import end_with_the_starter, error_file, log_file
from tests.helpers.sources import ROOT

CONFIG = parse_config({})


@pytest.mark.distributed
def test_a_mistake_that_a_rank_finds_keeps_its_line_and_exit_code(tmp_path: Path) -> None:
    config = shrink(CONFIG, 1, {"train": [str(tmp_path / "absent")], "valid": []})
    with pytest.raises(RootsError) as caught:
        launch(config, 1, tmp_path / "ranks", on_gpus=False)
    (line,) = caught.value.lines
    assert line == (
        f"data.train[0].prefix: {tmp_path / 'absent'}.idx: no such file; "
        "check data.train and data.valid, or run `roots preprocess`"
    )
    assert caught.value.exit_code == ExitCode.BAD_INPUT
    log = log_file(tmp_path / "ranks", 0).read_text(encoding="utf-8")
    assert log.splitlines()[-1] == f"roots: error: {line}"
    assert "Traceback" not in log


def launched(
    monkeypatch: pytest.MonkeyPatch, folder: Path, rank: Callable[..., None], ranks: int = 2
) -> RootsError:
    """What launch says of processes that do as `rank` does; forks of this one, which are cheap."""
    monkeypatch.setattr(launching, "run_rank", rank)
    before = set(multiprocessing.active_children())
    forked = multiprocessing.get_context("fork")
    forked.set_forkserver_preload = lambda names: None  # type: ignore[attr-defined]
    monkeypatch.setattr(launching.multiprocessing, "get_context", lambda kind: forked)
    with pytest.raises(RootsError) as caught:
        launch(CONFIG, ranks, folder, on_gpus=False)
    assert set(multiprocessing.active_children()) <= before
    return caught.value


def last_words(folder: Path, rank: int, environment: dict[str, str]) -> None:
    """Write a log, and end."""
    assert (environment["RANK"], environment["WORLD_SIZE"]) == (str(rank), "2")
    log_file(folder, rank).write_text("first\nthe reason\n")
    os._exit(7)


def test_a_rank_that_fails_is_named_with_its_last_words_and_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = launched(monkeypatch, tmp_path / "run", last_words)
    (line,) = error.lines
    rank = int(line.split()[1].rstrip(":"))
    log = log_file(tmp_path / "run", rank)
    assert line == f"rank {rank}: ended with exit code 7 (the reason); read {log}"
    assert error.exit_code == ExitCode.BUG


def lost(folder: Path, rank: int, environment: dict[str, str]) -> None:
    """The second rank is wrong, and the first one ends because it has lost that one."""
    if rank == 1:
        told = {"lines": ["data.train=3: is odd; use 4"], "exit_code": int(ExitCode.BAD_INPUT)}
        error_file(folder, rank).write_text(json.dumps(told))
    while not error_file(folder, 1).exists():
        os.sched_yield()
    sys.exit(1 + rank)


def test_ranks_that_lost_another_do_not_hide_its_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = launched(monkeypatch, tmp_path / "run", lost)
    assert error.lines == ("data.train=3: is odd; use 4",)
    assert error.exit_code == ExitCode.BAD_INPUT


class EndsWhenAsked:
    """A process that is still running when it is first asked, and has ended well right after."""

    sentinel = 0

    def __init__(self) -> None:
        self.codes = [None, 0]

    @property
    def exitcode(self) -> int | None:
        """Another answer every time."""
        return self.codes.pop(0) if len(self.codes) > 1 else self.codes[0]


def test_a_rank_that_ends_while_it_is_asked_has_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "wait", lambda sentinels, timeout: sentinels)
    told: list[int] = []
    launching._wait([EndsWhenAsked()], tmp_path, told.append)  # type: ignore[list-item]
    assert told == [1]


def hang(folder: Path, rank: int, environment: dict[str, str]) -> None:
    """End well, or never."""
    if rank == 1:
        signal.pause()


def test_a_rank_that_hangs_is_killed_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "TIMEOUT_SECONDS", 0.5)
    error = launched(monkeypatch, tmp_path / "run", hang)
    log = log_file(tmp_path / "run", 1)
    line = f"rank 1: did not end within 0 s (it said nothing); read {log}"
    assert error.lines == (line,)


def test_the_server_has_no_more_than_torch_where_there_are_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed asks for the GPU when it is imported; a process that has one cannot be forked."""
    loaded: list[list[str]] = []

    class Stopped(Exception):
        """Before any process starts."""

    class Context:
        """As far as launch gets."""

        def set_forkserver_preload(self, names: list[str]) -> None:
            loaded.append(names)
            raise Stopped

    monkeypatch.setattr(launching.multiprocessing, "get_context", lambda kind: Context())
    for count in (0, 2):
        monkeypatch.setattr(launching, "device_count", lambda count=count: count)
        with pytest.raises(Stopped):
            launch(CONFIG, 1, tmp_path / str(count), on_gpus=False)
    assert "roots.verify.curve" in loaded[0]
    assert loaded[1] == ["torch"]


_STARTER = """
import multiprocessing, os, signal, sys
from tests.verify.test_launch import wait_for_the_starter
if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    context.Process(target=wait_for_the_starter, args=(sys.argv[1],)).start()
    open(sys.argv[1]).read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def wait_for_the_starter(pipe: str) -> None:
    """A rank without work, which holds the standard output of its starter open while it lives."""
    end_with_the_starter()
    with open(pipe, "w", encoding="utf-8"):
        pass
    signal.pause()


def test_ranks_end_with_a_starter_that_is_killed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "starter.py").write_text(_STARTER)
    command = [sys.executable, str(tmp_path / "starter.py"), str(tmp_path / "pipe")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, start_new_session=True
    ) as starter:
        # Its end comes when the last process that has it has ended.
        assert starter.communicate(timeout=60)[0] == b""
    assert starter.returncode == -signal.SIGKILL
