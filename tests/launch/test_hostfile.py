"""hostfile.sh with the real deepspeed launcher; ssh and pdsh stand in, and run things here.

Each "host" of the tests is this machine. What really crosses a network is not shown here.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.sources import ROOT
from tests.launch.machine import environment_with, run, started, wait_for
from tests.launch.test_local import RANKS

pytest.importorskip("deepspeed", reason="deepspeed is not installed")
pytestmark = [pytest.mark.distributed]

# What a shell on the way would change.
WORDS = ["a.b=2", "a.c=x;$HOME*", "a.d=[1,{b:2}]"]
FACTS = """
import os
from pathlib import Path
Path(os.environ["FACTS"] + os.environ["RANK"]).write_text(str(dict(os.environ)))
"""
SSH = """#!/bin/bash
# A stand-in: ssh [OPTIONS] HOST COMMAND, run on this machine.
while [[ "$1" == -* ]]; do if [[ "$1" == -[op] ]]; then shift; fi; shift; done
shift
exec bash -c "$*"
"""
PDSH = """#!/bin/bash
# A stand-in: pdsh [-S] [-N] [-f N] -w HOSTS COMMAND, run once for each host on this machine.
while [[ "$1" == -* ]]; do
    case "$1" in -w) hosts="$2"; shift ;; -f) shift ;; esac
    shift
done
number=0
for host in ${hosts//,/ }; do
    words="${*//%n/$number}"
    bash -c "${words//%%/%}" &
    number=$((number + 1))
done
code=0
for job in $(jobs -p); do wait "$job" || code=$?; done
exit "$code"
"""


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    package = tmp_path / "fake" / "roots" / "cli"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    # All but its ranks are those of ROOTS.
    begin = f"__path__.append({str(ROOT / 'roots')!r})\n__version__ = '0'\n"
    (package.parent / "__init__.py").write_text(begin, encoding="utf-8")
    (package / "main.py").write_text(f"{FACTS}\n{RANKS}", encoding="utf-8")
    (tmp_path / "tools").mkdir()
    for name, text in (("ssh", SSH), ("pdsh", PDSH)):
        (tmp_path / "tools" / name).write_text(text, encoding="utf-8")
        (tmp_path / "tools" / name).chmod(0o755)
    (tmp_path / "hosts").write_text("a slots=1\nb slots=1 max_slots=4  # the second\n")
    (tmp_path / "run.yaml").touch()
    script = [str(ROOT / "launch" / "hostfile.sh"), "--checks", "off"]
    return ["bash", *script, str(tmp_path / "hosts"), str(tmp_path / "run.yaml")]


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    return environment_with(
        PATH=f"{tmp_path / 'tools'}:{os.environ['PATH']}",
        PYTHONPATH=str(tmp_path / "fake"),
        VIRTUAL_ENV=str(Path(sys.executable).parents[1]),
        DS_ACCELERATOR="cpu",
        FACTS=str(tmp_path / "facts"),
        FOLDER=str(tmp_path),
        **more,
    )


def test_code_and_variables_of_the_ranks(tmp_path: Path, command: list[str]) -> None:
    more = {"NCCL_NOTE": 'two words, "it" costs $5 `now` \\\\', "WANDB_API_KEY": "a marker"}
    result = run([*command, *WORDS, "code=4"], env=environment(tmp_path, **more))
    assert result.returncode == 4
    assert "hostfile.sh: WANDB_API_KEY looks like a secret and stays on this host" in result.stderr
    for rank in (0, 1):
        facts = (tmp_path / f"rank{rank}").read_text("utf-8").split()
        assert facts[:3] == [str(rank), "0", "2"]
        assert facts[4:] == ["train", str(tmp_path / "run.yaml"), *WORDS, "code=4"]
        variables = (tmp_path / f"facts{rank}").read_text("utf-8")
        assert repr(more["NCCL_NOTE"]) in variables
        # Each run has a name of its own, and leaves nothing under it.
        (records,) = re.findall("'ROOTS_RANK_RECORDS': '(/tmp/roots-ranks-[^/]*)/%h'", variables)
        assert not Path(records).exists()


@pytest.mark.parametrize("victim", ["script", "launcher"])
def test_ranks_end_with_what_started_them(tmp_path: Path, command: list[str], victim: str) -> None:
    """DeepSpeed calls a killed launcher a success; the ranks' own records say what it was."""
    with started([*command, "signal"], env=environment(tmp_path)) as process:
        wait_for([tmp_path / f"ready{rank}" for rank in (0, 1)], process)
        pids = [int((tmp_path / f"pid{rank}").read_text()) for rank in (0, 1)]
        ranks = [os.pidfd_open(pid) for pid in pids]
        # The ranks here do not talk to each other; real ones stop as soon as one of them is told.
        victims = [process.pid] if victim == "script" else [parent_of(pid) for pid in pids]
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        code = process.wait(timeout=60)
        for rank in ranks:
            assert select.select([rank], [], [], 60)[0], "a rank trains on"
    assert code == (-signal.SIGKILL if victim == "script" else 3)


def test_rank_that_is_stopped_alone_on_its_host_is_killed(
    tmp_path: Path, command: list[str]
) -> None:
    result = run([*command, "stopped"], env=environment(tmp_path))
    assert result.returncode == 7


def test_signal_lets_every_rank_of_this_run_save(tmp_path: Path, command: list[str]) -> None:
    with started([*command, "signal"], env=environment(tmp_path)) as process:
        wait_for([tmp_path / f"ready{rank}" for rank in (0, 1)], process)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 3
    # They are told which it was.
    assert {(tmp_path / f"saved{rank}").read_text("utf-8") for rank in (0, 1)} == {"SIGINT"}


def test_signal_before_there_are_ranks_has_nothing_to_save(
    tmp_path: Path, command: list[str]
) -> None:
    tools = tmp_path / "venv" / "bin"
    tools.mkdir(parents=True)
    for name, script in (
        ("python", f'exec {sys.executable} "$@"'),
        ("deepspeed", ': >"$FACTS"; exec sleep 60'),
    ):
        (tools / name).write_text(f"#!/bin/bash\n{script}\n", encoding="utf-8")
        (tools / name).chmod(0o755)
    values = {**environment(tmp_path), "VIRTUAL_ENV": str(tools.parent)}
    with started(command, env=values, stderr=subprocess.PIPE) as process:
        wait_for([tmp_path / "facts"], process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 3
        told = process.stderr.read() if process.stderr else ""
    assert told.splitlines() == [
        "hostfile.sh: 2 ranks: a slots 0; b slots 0",
        "hostfile.sh: stopped before there were ranks, nothing to save",
    ]


def test_signal_ends_a_look_at_the_hosts_at_once(tmp_path: Path, command: list[str]) -> None:
    """And the ssh that looks, though a signal to the script alone does not reach it."""
    ssh = tmp_path / "tools" / "ssh"
    record = 'echo $$ >"$FOLDER/new"; mv "$FOLDER/new" "$FOLDER/ssh"'
    ssh.write_text(f"#!/bin/bash\n{record}; exec sleep 60\n", encoding="utf-8")
    with started(command, env=environment(tmp_path), stderr=subprocess.PIPE) as process:
        wait_for([tmp_path / "ssh"], process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 3
        told = process.stderr.read() if process.stderr else ""
    assert told == "hostfile.sh: stopped before there were ranks, nothing to save\n"
    assert not Path("/proc", (tmp_path / "ssh").read_text("ascii").strip()).exists()
