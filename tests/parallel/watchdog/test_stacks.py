"""The stacks that a rank leaves, and what the kernel tells of another."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

from roots.lock import Owner, start_ticks
from roots.parallel.watchdog.stacks import is_stopped, is_there, write_absence, write_stacks


def test_stacks_hold_the_head_the_error_and_all_threads(tmp_path: Path) -> None:
    try:
        raise RuntimeError("connection closed")
    except RuntimeError as error:
        write_stacks(tmp_path / "stacks", 3, "the line", error)
    text = (tmp_path / "stacks" / "rank_3.txt").read_text("utf-8")
    assert text.startswith("the line\nTraceback (most recent call last):\n")
    assert "RuntimeError: connection closed" in text
    assert "(most recent call first):" in text
    assert "in test_stacks_hold_the_head_the_error_and_all_threads" in text
    write_absence(tmp_path / "stacks", 3, "another line")
    assert (tmp_path / "stacks" / "rank_3.txt").read_text("utf-8") == (
        "another line\nno Python stack: a process that is gone or stopped cannot write its own\n"
    )


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "stacks").write_text("a file", encoding="utf-8")
    write_stacks(tmp_path / "stacks", 0, "", None)
    write_absence(tmp_path / "stacks", 0, "")


def test_running_stopped_and_ended_processes_are_told_apart() -> None:
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    owner = replace(Owner.this_process(), pid=child, started=start_ticks(child) or 0)
    try:
        assert (is_there(owner), is_stopped(owner)) == (True, False)
        os.kill(child, signal.SIGSTOP)
        os.waitpid(child, os.WUNTRACED)
        assert (is_there(owner), is_stopped(owner)) == (True, True)
        assert not is_there(replace(owner, started=owner.started + 1))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert (is_there(owner), is_stopped(owner)) == (False, False)
