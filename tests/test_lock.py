"""The lock between processes."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import socket
import subprocess
import sys

import pytest

from roots import lock
from roots.errors import RootsError
from roots.lock import Owner, Place, file_lock, lock_beside, owned, owner_of

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


RUN = Place("run folder", "the run is recorded there", "set another run.name", value="runs/a")
OWN_AND_DIE = """
import os, sys
from pathlib import Path
from roots.lock import Place, owned
with owned(Path(sys.argv[1]), Place("cache", "it is kept there", "choose another")):
    print("held", flush=True)
    sys.stdin.read()
    os._exit(9)
"""


class Watch:
    """Stands for the time that passes while an owner elsewhere is watched."""

    def __init__(self, action=lambda seconds: None):
        self.seconds, self.action = 0.0, action

    def sleep(self, seconds):
        self.seconds += seconds
        self.action(self.seconds)

    def monotonic(self):
        return self.seconds


def leave_record(path, age=0.0, **changes):
    """Write the record of another owner whose last sign is `age` seconds old."""
    owner = dataclasses.replace(Owner.this_process(), token="another", **changes)
    path.write_text(json.dumps(dataclasses.asdict(owner)))
    renewed = path.stat().st_mtime - age
    os.utime(path, (renewed, renewed))
    return owner


def taken(path, job=""):
    with owned(path, RUN, job=job):
        return True


def refusal(path, job="", code=2):
    with pytest.raises(RootsError) as caught, owned(path, RUN, job=job):
        pass
    assert int(caught.value.exit_code) == code
    return str(caught.value)


def test_second_owner_is_refused_by_name_and_nothing_stays(tmp_path):
    path = tmp_path / "new" / "run.lock"
    with owned(path, RUN) as ownership:
        assert refusal(path) == (
            f"run folder='runs/a': in use by pid {os.getpid()} on host {socket.gethostname()} "
            f"since {ownership.mine.since}; set another run.name"
        )
        ownership.check()
    assert list(tmp_path.iterdir()) == []


def test_owner_that_was_killed_is_followed_at_once(tmp_path, caplog):
    path = tmp_path / "run.lock"
    process = subprocess.Popen(
        [sys.executable, "-c", OWN_AND_DIE, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "held\n"
    assert f"in use by pid {process.pid} on host" in refusal(path)
    process.kill()
    # Until its parent asks for the exit status it is a zombie: that has ended too.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert taken(path)
    assert f"took over {path} from pid {process.pid} on host" in caplog.text
    process.communicate()


def test_pid_that_another_process_has_now_is_no_owner(tmp_path):
    path = tmp_path / "run.lock"
    leave_record(path, started=1)
    assert taken(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"host": "node7"},
        {"machine": "another start"},
        {"host": "node7", "job": "12.0"},
        # Two steps of one start of a job may run side by side.
        {"host": "node7", "job": "11.1"},
    ],
)
def test_owner_elsewhere_is_believed_while_it_shows_signs(tmp_path, monkeypatch, changes):
    path = tmp_path / "run.lock"
    owner = leave_record(path, age=5, **changes)
    watch = Watch(lambda seconds: os.utime(path) if seconds >= 4 else None)
    monkeypatch.setattr("roots.lock.time", watch)
    assert f"in use by {owner.describe()};" in refusal(path, job="11.1")
    assert watch.seconds == 4
    assert json.loads(path.read_text())["token"] == "another"


def test_owner_elsewhere_without_signs_is_followed_after_the_bound(tmp_path, monkeypatch):
    path = tmp_path / "run.lock"
    leave_record(path, age=lock.BOUND_SECONDS + 1, host="node7")
    assert taken(path)

    leave_record(path, host="node7")
    start = path.stat().st_mtime
    watch = Watch()
    monkeypatch.setattr("roots.lock.time", watch)
    monkeypatch.setattr("roots.lock._age", lambda _: path.stat().st_mtime - start + watch.seconds)
    assert taken(path)
    assert watch.seconds == lock.BOUND_SECONDS


def test_requeued_job_follows_its_former_start_at_once(tmp_path):
    path = tmp_path / "run.lock"
    leave_record(path, host="node7", job="11.0")
    assert taken(path, job="11.1")


def test_owner_that_seemed_to_have_ended_learns_who_took_over(tmp_path, monkeypatch):
    monkeypatch.setattr("roots.lock.BEAT_SECONDS", 0.01)
    path = tmp_path / "run.lock"
    with owned(path, RUN) as ownership:
        other = leave_record(path, host="node7")
        with pytest.raises(RootsError) as caught:
            ownership.check()
        ownership.keep()  # ends by itself
    assert str(caught.value) == (
        f"run folder='runs/a': was taken over by {other.describe()} while this process did not "
        "answer; leave it to that one, or end it and start again"
    )
    assert json.loads(path.read_text())["host"] == "node7"


def test_file_system_without_locks_still_has_one_owner(tmp_path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    path = tmp_path / "run.lock"
    monkeypatch.setattr("roots.lock.fcntl.flock", flock)
    watch = Watch()
    monkeypatch.setattr("roots.lock.time", watch)
    with owned(path, RUN):
        assert f"in use by pid {os.getpid()} on" in refusal(path)
    # Another that looked at the same moment, and wrote last.
    watch.action = lambda _: leave_record(path, host="node7")
    assert "in use by pid" in refusal(path)


@pytest.mark.parametrize("content", ["", "{}", "[1]", "nobody", '{"pid": "x"}', "\0" * 50])
def test_what_is_no_record_is_nobody(tmp_path, content):
    path = tmp_path / "run.lock"
    path.write_text(content)
    assert taken(path)


def test_locks_honour_the_umask(tmp_path):
    before = os.umask(0o007)
    try:
        with file_lock(tmp_path / "a.lock", 1, PLACE), owned(tmp_path / "b.lock", RUN):
            modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert modes == {"a.lock": 0o660, "b.lock": 0o660}


def test_full_disk_is_one_line(tmp_path, monkeypatch):
    def pwrite(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.pwrite", pwrite)
    # Not bad input: it is worth another try.
    assert refusal(tmp_path / "run.lock", code=6) == (
        f"run folder='runs/a': cannot be locked by {tmp_path}/run.lock (No space left on device); "
        "free some disk space"
    )


def test_lock_lies_beside_what_is_not_there_yet(tmp_path):
    assert lock_beside(tmp_path / "model") == tmp_path / ".model.lock"
