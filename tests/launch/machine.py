"""A bare checkout and a PATH of chosen tools: a machine that lacks things, for the scripts."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.helpers.sources import ROOT

TOOLS = (
    "awk",
    "basename",
    "bash",
    "cat",
    "cut",
    "df",
    "dirname",
    "env",
    "find",
    "grep",
    "head",
    "mkdir",
    "mktemp",
    "nproc",
    "paste",
    "printf",
    "rm",
    "sed",
    "seq",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "tail",
    "timeout",
    "tr",
    "uname",
    "wc",
    "xargs",
)

# To look all the time would take a processor from those that are waited for.
_POLL_SECONDS = 0.02


class Machine:
    """A folder with the launch scripts and nothing built, and the tools that are on its PATH."""

    def __init__(self, folder: Path) -> None:
        self.checkout = folder / "checkout"
        self.tools = folder / "tools"
        self.tools.mkdir(parents=True)
        for name in ("launch", "configs"):
            shutil.copytree(ROOT / name, self.checkout / name)
        (self.checkout / "docker").mkdir()
        shutil.copy(ROOT / "docker" / "constraints.txt", self.checkout / "docker")
        for name in TOOLS:
            found = shutil.which(name)
            assert found, f"the test needs {name}"
            (self.tools / name).symlink_to(found)
        self.tool("python3", f'exec {sys.executable} "$@"')

    def tool(self, name: str, script: str) -> None:
        """Put a shell script on PATH under `name`, in place of what was there."""
        path = self.tools / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!{self.tools / 'bash'}\n{script}\n", encoding="utf-8")
        path.chmod(0o755)

    def run(self, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a script of the checkout with bash; `environment` is all it gets besides PATH."""
        arguments = [str(self.tools / "bash"), *map(str, command)]
        values = {"PATH": str(self.tools), "HOME": str(self.checkout), **environment}
        return run(arguments, cwd=self.checkout, env=values)

    def files(self) -> set[Path]:
        """Everything in the checkout, to see that nothing was changed."""
        return set(self.checkout.rglob("*"))


@contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start a process as a terminal does; what it has started ends with the block at the latest."""
    # A suite that runs behind `&` or nohup ignores signals, and bash cannot trap what it inherits
    # as ignored. The session tells its processes apart even when their parent is gone.
    process = subprocess.Popen(
        ["env", "--default-signal", *command], start_new_session=True, text=True, **options
    )
    try:
        yield process
    finally:
        _kill_session(process.pid)
        process.wait()


def run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, for two minutes at most, and capture what it says."""
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
        stdout, stderr = process.communicate(timeout=120)
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def wait_for(paths: Iterable[Path], process: subprocess.Popen[str] | None = None) -> None:
    """Return when all of `paths` exist; fail when `process` ends before, or after a minute."""
    deadline = time.monotonic() + 60
    missing = set(paths)
    while missing:
        assert process is None or process.poll() is None, "ended before it began"
        assert time.monotonic() < deadline, "did not begin"
        missing = {path for path in missing if not path.exists()}
        if missing:
            threading.Event().wait(_POLL_SECONDS)


def _kill_session(session: int) -> None:
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(ProcessLookupError):
            if os.getsid(int(entry.name)) == session:
                os.kill(int(entry.name), signal.SIGKILL)


def environment_with(**values: str) -> dict[str, str]:
    """This process's environment with some values replaced."""
    return {**os.environ, **values}
