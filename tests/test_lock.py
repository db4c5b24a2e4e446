"""The lock between processes."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys

import pytest

from roots.errors import RootsError
from roots.lock import Place, file_lock, owner_of

PLACE = Place("index cache", "the sample index is kept there", "set data.cache_directory")

HOLD_AND_DIE = """
import os, sys
from pathlib import Path
from roots.lock import Place, file_lock
with file_lock(Path(sys.argv[1]), 1, Place("cache", "it is kept there", "choose another")):
    print("held", flush=True)
    sys.stdin.read()
    os._exit(9)
"""


def hold_elsewhere(path):
    """Start a process that holds the lock until its stdin closes, and then dies without release."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD_AND_DIE, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_names_its_owner(tmp_path):
    with file_lock(tmp_path / "a.lock", 1, PLACE) as held:
        assert held is not None
        owner = {"pid": os.getpid(), "host": socket.gethostname()}
        assert json.loads((tmp_path / "a.lock").read_text()) == owner


def test_waiting_ends_with_the_owner_named_and_dead_owners_do_not_block(tmp_path):
    path = tmp_path / "a.lock"
    process = hold_elsewhere(path)
    try:
        with pytest.raises(RootsError) as caught, file_lock(path, 0.1, PLACE):
            pass
        assert str(caught.value) == (
            f"{path}: held by process {process.pid} on {socket.gethostname()} for over 0.1 "
            "seconds; wait for that process or end it; the lock goes with it"
        )
    finally:
        process.communicate()
    assert process.returncode == 9
    with file_lock(path, 0, PLACE) as held:
        assert held is not None


def test_not_taken_when_the_work_is_done_meanwhile(tmp_path):
    path = tmp_path / "a.lock"
    answers = iter([False, False, True])
    with file_lock(path, 10, PLACE), file_lock(path, 10, PLACE, done=lambda: next(answers)) as held:
        assert held is None


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RootsError) as caught, file_lock(tmp_path / "file" / "a.lock", 1, PLACE):
        pass
    assert str(caught.value) == (
        f"index cache='{tmp_path}/file': cannot be written (File exists), and the sample index is "
        "kept there; set data.cache_directory"
    )


def test_file_system_without_locks(tmp_path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("roots.lock.fcntl.flock", flock)
    with pytest.raises(RootsError) as caught, file_lock(tmp_path / "a.lock", 1, PLACE):
        pass
    assert str(caught.value) == (
        f"index cache='{tmp_path}': its file system has no locks (No locks available); "
        "set data.cache_directory"
    )


def test_unknown_owner(tmp_path):
    (tmp_path / "a.lock").write_text("")
    assert owner_of(tmp_path / "a.lock") == "an unknown process"
