"""The shell scripts are clean, and refuse wrong arguments in one line."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.sources import ROOT, files, name_of
from tests.launch.machine import Machine

SCRIPTS = [*files(".sh", ".sbatch"), ROOT / ".ci" / "run"]


def test_scripts_were_found() -> None:
    names = {name_of(path) for path in SCRIPTS}
    assert {"launch/local.sh", "launch/slurm.sbatch", "tests/run.sh", "docker/build.sh"} <= names


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_script_passes_shellcheck(path: Path) -> None:
    beside_python = Path(sys.executable).with_name("shellcheck")
    shellcheck = str(beside_python) if beside_python.is_file() else shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (extra `dev`)")
    result = subprocess.run(
        [shellcheck, "-x", path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    "command, line",
    [
        (
            ["launch/local.sh"],
            "local.sh: usage: launch/local.sh N CONFIG [section.key=value ...]",
        ),
        (
            ["launch/local.sh", "two", "configs/base.yaml"],
            "local.sh: N=two: must be a positive number of ranks; "
            "usage: launch/local.sh N CONFIG [section.key=value ...]",
        ),
        (
            ["launch/local.sh", "0", "configs/base.yaml"],
            "local.sh: N=0: must be a positive number of ranks; "
            "usage: launch/local.sh N CONFIG [section.key=value ...]",
        ),
        (
            ["launch/local.sh", "2", "none.yaml"],
            "local.sh: CONFIG=none.yaml: no such file; "
            "usage: launch/local.sh N CONFIG [section.key=value ...]",
        ),
        (
            ["launch/hostfile.sh", "hosts"],
            "hostfile.sh: usage: launch/hostfile.sh HOSTFILE CONFIG [section.key=value ...]",
        ),
        (
            ["launch/hostfile.sh", "hosts", "configs/base.yaml"],
            "hostfile.sh: HOSTFILE=hosts: no such file; "
            "usage: launch/hostfile.sh HOSTFILE CONFIG [section.key=value ...]",
        ),
        (
            ["launch/supervise.sh", "--tries", "3"],
            "supervise.sh: usage: launch/supervise.sh [option ...] COMMAND ... CONFIG "
            "[section.key=value ...]",
        ),
        (
            ["launch/supervise.sh", "--tries", "few", "launch/local.sh"],
            "supervise.sh: --tries=few: must be a whole number, not negative; usage: "
            "launch/supervise.sh [option ...] COMMAND ... CONFIG [section.key=value ...]",
        ),
        (
            ["launch/supervise.sh", "--try", "launch/local.sh"],
            "supervise.sh: --try: no such option; usage: "
            "launch/supervise.sh [option ...] COMMAND ... CONFIG [section.key=value ...]",
        ),
        (
            ["launch/supervise.sh", "bash", "none.yaml", "training.steps=3"],
            "supervise.sh: CONFIG=none.yaml: no such file; usage: "
            "launch/supervise.sh [option ...] COMMAND ... CONFIG [section.key=value ...]",
        ),
        (
            ["launch/slurm.sbatch"],
            "slurm.sbatch: usage: sbatch [options] launch/slurm.sbatch CONFIG "
            "[section.key=value ...]",
        ),
        (
            ["launch/slurm.sbatch", "none.yaml"],
            "slurm.sbatch: CONFIG=none.yaml: no such file",
        ),
        (
            ["launch/slurm.sbatch", "configs/base.yaml"],
            "slurm.sbatch: not inside a Slurm job: submit this file with sbatch",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_are_told_in_one_line(
    tmp_path: Path, command: list[str], line: str
) -> None:
    result = Machine(tmp_path).run(*command)
    assert (result.returncode, result.stderr) == (2, line + "\n")


@pytest.mark.parametrize(
    "text, line",
    [
        ("# only a comment\n", "names no host; write a line 'NAME slots=N' for each"),
        ("one slots=8\ntwo 8\n", "line 2 is 'two 8', must be 'NAME slots=N'"),
        ("one slots=0\n", "line 1 is 'one slots=0', must be 'NAME slots=N'"),
        (
            "one slots=8\n two  slots=8 # the second\none slots=4\n",
            "line 3 names one again; give each host one line with all its slots",
        ),
        ("one slots=8 cores=9\n", "line 1 is 'one slots=8 cores=9', must be 'NAME slots=N'"),
        ("one slots=8\n", None),
        ("-oX=y slots=1\n", "line 1 is '-oX=y slots=1', must be 'NAME slots=N'"),
        ("# hosts\r\n\r\nme@one slots = 8  max_slots = 8 # a\r\n", None),
        ("# all\n\n  one  slots=8 max_slots=16  # new\ntwo slots=1 max-slots=1", None),
    ],
)
def test_hostfile_is_read_before_anything_starts(
    tmp_path: Path, text: str, line: str | None
) -> None:
    machine = Machine(tmp_path)
    (machine.checkout / "hosts").write_text(text, encoding="utf-8")
    result = machine.run("launch/hostfile.sh", "hosts", "configs/base.yaml")
    expected = f"HOSTFILE=hosts: {line}" if line else "no pdsh on PATH: run `apt-get install pdsh`"
    assert (result.returncode, result.stderr) == (2, f"hostfile.sh: {expected}\n")


def test_missing_installation_is_told_in_one_line(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.tool("python3", "exit 1")
    result = machine.run("launch/local.sh", "2", "configs/base.yaml")
    assert result.returncode == 2
    assert result.stderr.startswith(
        "local.sh: no Python here has ROOTS installed: run `bash launch"
    )
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "words, base",
    [
        (["cpu"], "BASE"),
        (["cpu", "--build-arg", "BASE=debian:bookworm"], "BASE"),
        (["cuda", "tag", "--build-arg", f"BUILD_BASE=a@sha256:{'0' * 64}"], "RUN_BASE"),
    ],
)
def test_image_is_built_from_a_digest_unless_told_otherwise(words: list[str], base: str) -> None:
    result = subprocess.run(
        ["bash", "docker/build.sh", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (
        2,
        f"build.sh: {base} has no digest: add `--build-arg {base}=NAME@sha256:...` "
        "(docker/README.md), or --floating for what the tag names today\n",
    )
