"""mpirun.sh with a stand-in of Open MPI: what it refuses, and when it starts nothing.

tests/cluster/test_mpirun.py has the real one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.sources import ROOT
from tests.launch.machine import environment_with, run, started, wait_for
from tests.launch.test_hostfile import SSH

# Starts what is after the first `-np 1` for both hosts, if it is a try, and no rank.
MPIRUN = """#!/bin/bash
if [[ "$1" == --version ]]; then echo "mpirun (Open MPI) 4.1.4"; exit 0; fi
case " $* " in
    *" --bad "*)
        line=--------------------------------
        printf '%s\\n' $line "mpirun: Error: unknown option" "" "  \\"--bad\\"" $line >&2
        exit 1
        ;;
    *" stray "*) echo "no program stray"; exit 0 ;;
    *" --slow "*) touch "$FOLDER/tried"; exec sleep 60 ;;
esac
while [[ "$1" != -np ]]; do shift; done
if [[ "$3" != echo ]]; then exit 5; fi
for _ in a b; do echo "[1,0]<stdout>:$4"; done
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    (tmp_path / "tools").mkdir()
    for name, text in (("ssh", SSH), ("mpirun", MPIRUN)):
        (tmp_path / "tools" / name).write_text(text, encoding="utf-8")
        (tmp_path / "tools" / name).chmod(0o755)
    (tmp_path / "hosts").write_text("a slots=1\nb slots=1\n", encoding="ascii")
    (tmp_path / "run.yaml").touch()
    return ["bash", str(ROOT / "launch" / "mpirun.sh"), "--checks", "off"]


def words(tmp_path: Path) -> list[str]:
    return [str(tmp_path / "hosts"), str(tmp_path / "run.yaml")]


def environment(tmp_path: Path) -> dict[str, str]:
    return environment_with(
        PATH=f"{tmp_path / 'tools'}:{os.environ['PATH']}",
        PYTHONPATH=str(ROOT),
        VIRTUAL_ENV=str(Path(sys.executable).parents[1]),
        MASTER_ADDR="a",
        MASTER_PORT="23456",
        FOLDER=str(tmp_path),
    )


@pytest.mark.parametrize(
    "options, told",
    [
        ("--bad", 'code 1: mpirun: Error: unknown option "--bad"'),
        ("--tag-output stray", "code 0: no program stray"),
    ],
)
def test_options_that_mpirun_does_not_take_are_told_with_its_words(
    tmp_path: Path, command: list[str], options: str, told: str
) -> None:
    more = ["--mpirun-options", options, *words(tmp_path)]
    result = run([*command, *more], env=environment(tmp_path))
    assert (result.returncode, result.stdout) == (2, "")
    rule = "must be options that mpirun starts ranks with"
    fix = "not words that it takes for the program; correct them, or leave them out"
    assert result.stderr.splitlines() == [
        "mpirun.sh: 2 ranks: a slots 0; b slots 0",
        f"mpirun.sh: --mpirun-options={options}: {rule} ({told}), {fix}",
    ]


def test_launcher_that_starts_no_rank_is_told(tmp_path: Path, command: list[str]) -> None:
    more = ["--mpirun-options", "--tag-output", *words(tmp_path)]
    result = run([*command, *more], env=environment(tmp_path))
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        "mpirun.sh: no rank has begun: mpirun ended with code 5, and has said above why"
    )


def test_signal_ends_the_try_of_options_at_once(tmp_path: Path, command: list[str]) -> None:
    more = ["--mpirun-options", "--slow", *words(tmp_path)]
    with started([*command, *more], env=environment(tmp_path), stderr=subprocess.PIPE) as process:
        wait_for([tmp_path / "tried"], process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 3
        told = process.stderr.read() if process.stderr else ""
    assert told.splitlines()[1:] == ["mpirun.sh: stopped before there were ranks, nothing to save"]
