"""local.sh with the real deepspeed launcher, and ranks that end as each test wants."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.sources import ROOT
from tests.launch.machine import Machine, environment_with, run, started, wait_for

pytest.importorskip("deepspeed", reason="deepspeed is not installed")
pytestmark = [pytest.mark.distributed]

# A package in ROOTS' place. Overrides reach it as they are; the last one says how the rank ends.
RANKS = """
import os, signal, sys, threading
from pathlib import Path

def main():
    rank, folder = os.environ["RANK"], Path(os.environ["FOLDER"])
    facts = [os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")]
    folder.joinpath(f"rank{rank}").write_text(" ".join(facts + sys.argv[1:]))
    how = sys.argv[-1]
    if how.startswith("code="):
        # Rank 1 has the reason; rank 0 fails because its neighbour is gone.
        sys.exit(int(how[5:]) if rank == "1" else wait_for_end_of_neighbour(folder))
    if how == "killed" and rank == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "stopped":
        if rank == "1":
            os.kill(os.getpid(), signal.SIGSTOP)
        sys.exit(7)
    if how == "signal":
        received = []
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        for number in numbers:
            signal.signal(number, lambda number, frame: received.append(number))
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        folder.joinpath(f"pid{rank}").write_text(str(os.getpid()))
        folder.joinpath(f"ready{rank}").touch()
        received.append(signal.sigwait(numbers))
        folder.joinpath(f"saved{rank}").write_text(signal.Signals(received[0]).name)
        sys.exit(3)

def wait_for_end_of_neighbour(folder):
    records = Path(os.environ["ROOTS_RANK_RECORDS"].replace("%h", os.uname().nodename))
    while not records.joinpath("1.code").exists():
        threading.Event().wait(0.01)
    return 1
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    package = tmp_path / "fake" / "roots" / "cli"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package / "main.py").write_text(RANKS, encoding="utf-8")
    (tmp_path / "run.yaml").touch()
    return ["bash", str(ROOT / "launch" / "local.sh"), "2", str(tmp_path / "run.yaml")]


def environment(tmp_path: Path) -> dict[str, str]:
    return environment_with(
        PYTHONPATH=str(tmp_path / "fake"),
        FOLDER=str(tmp_path),
        VIRTUAL_ENV=str(Path(sys.executable).parents[1]),
    )


@pytest.mark.parametrize("code", [2, 3])
def test_code_of_the_rank_that_failed_first_is_passed_on(
    tmp_path: Path, command: list[str], code: int
) -> None:
    result = run([*command, "model.num_layers=2", f"code={code}"], env=environment(tmp_path))
    assert result.returncode == code
    ranks = [(tmp_path / f"rank{rank}").read_text("utf-8").split() for rank in (0, 1)]
    assert [facts[:3] for facts in ranks] == [["0", "0", "2"], ["1", "1", "2"]]
    assert ranks[0][3] == ranks[1][3]
    overrides = ["train", str(tmp_path / "run.yaml"), "model.num_layers=2", f"code={code}"]
    assert ranks[0][4:] == ranks[1][4:] == overrides


def test_killed_rank_is_no_success(tmp_path: Path, command: list[str]) -> None:
    result = run([*command, "killed"], env=environment(tmp_path))
    assert result.returncode == 7
    assert result.stderr.endswith(
        "local.sh: rank 1 of 2 ended without an exit code: killed, perhaps for lack of memory\n"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_signal_lets_every_rank_save(
    tmp_path: Path, command: list[str], number: signal.Signals
) -> None:
    with started([*command, "signal"], env=environment(tmp_path)) as process:
        wait_for([tmp_path / f"ready{rank}" for rank in (0, 1)], process)
        process.send_signal(number)
        assert process.wait(timeout=60) == 3
    saved = {(tmp_path / f"saved{rank}").read_text("utf-8") for rank in (0, 1)}
    assert saved == {number.name}


def test_rank_keeps_a_signal_for_who_can_handle_it(tmp_path: Path, command: list[str]) -> None:
    """From its first moment on, though what handles signals is imported seconds later."""
    main = tmp_path / "fake" / "roots" / "cli" / "main.py"
    main.write_text(
        "import os, signal, sys\n"
        "def main():\n"
        "    open(os.environ['FOLDER'] + '/ready', 'w').close()\n"
        "    while signal.SIGTERM not in signal.sigpending():\n"
        "        pass\n"
        "    sys.exit(3)\n",
        encoding="utf-8",
    )
    words = [sys.executable, str(ROOT / "launch" / "rank.py"), "train"]
    with started(words, env=environment(tmp_path)) as process:
        wait_for([tmp_path / "ready"], process)
        process.terminate()
        assert process.wait(timeout=60) == 3


def test_signal_before_there_are_ranks_has_nothing_to_save(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.tool("python3", "echo 12345")
    machine.tool("deepspeed", 'echo "$ROOTS_JOB_START" >"$STARTED"; exec sleep 60')
    command = [str(machine.tools / "bash"), "launch/local.sh", "2", "configs/base.yaml"]
    values = {"PATH": str(machine.tools), "STARTED": str(tmp_path / "started")}
    options = {"cwd": machine.checkout, "env": values, "stderr": subprocess.PIPE}
    with started(command, **options) as process:
        wait_for([tmp_path / "started"], process)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(timeout=60) == 3
        told = process.stderr.read() if process.stderr else ""
    assert told == "local.sh: stopped by SIGUSR1 before there were ranks, nothing to save\n"
    # What stop.wall_clock counts from.
    assert 0 <= time.time() - int((tmp_path / "started").read_text("ascii")) < 60


def descendant(process: int, part: str) -> int:
    """The child, or child of a child, whose command line has `part`; 0 if there is none."""
    for child in Path(f"/proc/{process}/task/{process}/children").read_text("utf-8").split():
        command_line = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        if part in command_line:
            return int(child)
        if found := descendant(int(child), part):
            return found
    return 0


@pytest.mark.parametrize("victim", ["local.sh", "bin/deepspeed", "deepspeed.launcher.launch"])
def test_ranks_save_and_end_with_what_started_them(
    tmp_path: Path, command: list[str], victim: str
) -> None:
    with started([*command, "signal"], env=environment(tmp_path)) as process:
        wait_for([tmp_path / f"ready{rank}" for rank in (0, 1)], process)
        dead = process.pid if victim == "local.sh" else descendant(process.pid, victim)
        os.kill(dead, signal.SIGKILL)
        code = process.wait(timeout=60)
        wait_for([tmp_path / f"saved{rank}" for rank in (0, 1)])
    assert code == (-signal.SIGKILL if victim == "local.sh" else 3)
    saved = {(tmp_path / f"saved{rank}").read_text("utf-8") for rank in (0, 1)}
    assert saved == {"SIGTERM"}
