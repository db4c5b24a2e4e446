"""Simulated hosts, as tests use them: what hosts.sh does, and who runs on a host.

All files are shared by the hosts and this machine; a test that wants one to differ mounts another
over it on one host: `hosts.run("node2", "mount", "--bind", mine, theirs)`, until that is switched
off.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.helpers.sources import ROOT

SCRIPT = ROOT / "tests" / "cluster" / "hosts.sh"
# What a host runs without any test; a session of sshd has the same name and another parent.
_DAEMONS = ("sshd", "munged", "slurmctld", "slurmd", "slurmdbd", "mariadbd")


class Hosts:
    """Hosts that were started in `folder`; the first of `names` has no rank in most tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = (folder / "names").read_text("ascii").split()

    def run(
        self, host: str, *words: str | Path, timeout: float = 120.0, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on `host` to its end; `environment` is added to this process's own."""
        with self.started(host, *words, **environment) as process:
            stdout, stderr = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)

    @contextmanager
    def started(
        self, host: str, *words: str | Path, cwd: Path = ROOT, **environment: str
    ) -> Iterator[subprocess.Popen[str]]:
        """Start a command on `host`; with the block it is killed, what it has started is not.

        Signals for it go through `send`: the process that is given stands before the command.
        """
        # A suite behind `&` or nohup ignores signals, and bash cannot trap what it inherits so.
        command = ["env", "--default-signal", "bash", SCRIPT, "in", self.folder, host, *words]
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=cwd,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def send(self, process: subprocess.Popen[str], number: signal.Signals) -> None:
        """Send a signal to the command that `started` gave."""
        (command,) = _children(process.pid)
        os.kill(command, number)

    def cut(self, host: str) -> None:
        """Pull out the host's cable: the others hear nothing of it any more."""
        self._do("link", host, "down")

    def mend(self, host: str) -> None:
        """Put the cable back."""
        self._do("link", host, "up")

    def throttle(self, host: str, rate: str = "none") -> None:
        """Let the host's cable carry at most `rate`, such as "10mbit", both ways."""
        self._do("rate", host, rate)

    def switch_off(self, host: str) -> None:
        """Take the host's power."""
        self._do("off", host)

    def switch_on(self, host: str) -> None:
        """Give it back; the host has a sshd, and of Slurm nothing."""
        self._do("on", host)

    def is_on(self, host: str) -> bool:
        """Whether the host has power."""
        return (self.folder / f"{host}.pid").exists()

    def processes(self, host: str) -> dict[int, str]:
        """What runs on `host`, by process number of this machine: its words, no daemons.

        What was started there and is left is found, whoever its parent is.
        """
        init = int((self.folder / f"{host}.pid").read_text("ascii"))
        space = os.readlink(f"/proc/{init}/ns/pid")
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            # A process may end while it is looked at.
            with suppress(OSError):
                if os.readlink(entry / "ns" / "pid") != space:
                    continue
                name, parent = _name_and_parent(entry)
                daemon = entry.name == str(init) or (parent == init and name in _DAEMONS)
                words = (entry / "cmdline").read_bytes().split(b"\0")[:-1]
                if words and not daemon:
                    found[int(entry.name)] = shlex.join(word.decode() for word in words)
        return found

    def _do(self, action: str, host: str, *words: str) -> None:
        command = ["bash", str(SCRIPT), action, str(self.folder), host, *words]
        subprocess.run(command, check=True, capture_output=True, text=True)


@contextmanager
def hosts_up(folder: Path, names: Sequence[str]) -> Iterator[Hosts]:
    """Start hosts of these names; they end with the block, and with this process in any case."""
    command = ["bash", str(SCRIPT), "up", "--owner", str(os.getpid()), str(folder), *names]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    try:
        yield Hosts(folder)
    finally:
        subprocess.run(["bash", str(SCRIPT), "down", str(folder)], check=True)


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Return when `condition` holds; fail, saying `what` was waited for, after `seconds`."""
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds:g} s it is not so that {what}"
        pause.wait(0.1)


def _name_and_parent(process: Path) -> tuple[str, int]:
    before, _, after = (process / "stat").read_text("utf-8", errors="replace").rpartition(")")
    return before.partition("(")[2], int(after.split()[1])


def _children(process: int) -> list[int]:
    return [int(x) for x in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
