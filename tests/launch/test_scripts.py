"""The shell scripts are clean, and refuse wrong arguments in one line."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.sources import ROOT, files, name_of
from tests.launch.machine import Machine

ON_HOSTS = ("hostfile", "torchrun", "mpirun")
SCRIPTS = [*files(".sh", ".sbatch"), ROOT / ".ci" / "run"]


def usage(script: str) -> str:
    return f"usage: launch/{script}.sh [option ...] HOSTFILE CONFIG [section.key=value ...]"


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
            f"hostfile.sh: {usage('hostfile')}",
        ),
        (
            ["launch/hostfile.sh", "hosts", "configs/base.yaml"],
            f"hostfile.sh: HOSTFILE=hosts: no such file; {usage('hostfile')}",
        ),
        (
            ["launch/torchrun.sh", "configs/base.yaml", "none.yaml"],
            f"torchrun.sh: CONFIG=none.yaml: no such file; {usage('torchrun')}",
        ),
        (
            ["launch/mpirun.sh", "--include"],
            f"mpirun.sh: --include: no such option, or no value after it; {usage('mpirun')}",
        ),
        (
            ["launch/mpirun.sh", "--max-restarts", "3", "hosts", "configs/base.yaml"],
            f"mpirun.sh: --max-restarts: no such option; {usage('mpirun')}",
        ),
        (
            ["launch/torchrun.sh", "--max-restarts", "-1", "hosts", "configs/base.yaml"],
            "torchrun.sh: --max-restarts=-1: must be a whole number, not negative; "
            f"{usage('torchrun')}",
        ),
        (
            ["launch/hostfile.sh", "--over", "rsh", "hosts", "configs/base.yaml"],
            f"hostfile.sh: --over=rsh: must be pdsh or ssh; {usage('hostfile')}",
        ),
        (
            ["launch/hostfile.sh", "--ssh-port", "22x", "hosts", "configs/base.yaml"],
            f"hostfile.sh: --ssh-port=22x: must be a port; {usage('hostfile')}",
        ),
        (
            ["launch/hostfile.sh", "--include", "a", "--exclude", "b", "hosts", "run.yaml"],
            "hostfile.sh: --include and --exclude: give one of them",
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
            "slurm.sbatch: usage: sbatch [options] launch/slurm.sbatch [--sweep FILE] "
            "[--container KIND:IMAGE] [--mount FOLDER] CONFIG [section.key=value ...]",
        ),
        (
            ["launch/slurm.sbatch", "none.yaml"],
            "slurm.sbatch: CONFIG=none.yaml: no such file",
        ),
        (
            ["launch/slurm.sbatch", "configs/base.yaml"],
            "slurm.sbatch: no sbatch on PATH: no machine of a Slurm cluster; launch/local.sh and "
            "launch/hostfile.sh start runs without",
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
        ("one slot=1\n", "line 1 is 'one slot=1', must be 'NAME slots=N'"),
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
    expected = f"HOSTFILE=hosts: {line}" if line else "no ssh on PATH: run `apt-get install openssh"
    assert result.returncode == 2
    assert result.stderr.startswith(f"hostfile.sh: {expected}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "words, line",
    [
        (["--include", "c"], "--include=c: HOSTFILE has no host c"),
        (["--include", "a@b:0,2"], "--include=a@b:0,2: host b has no slot 2"),
        (["--exclude", "a:"], "--exclude=a:: 'a:' must be NAME or NAME:SLOT,SLOT,..."),
        (["--exclude", "a:0-3"], "--exclude=a:0-3: 'a:0-3' must be NAME or NAME:SLOT,SLOT,..."),
        (["--exclude", "a@b:1,0"], "--exclude=a@b:1,0: leaves no slot"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_filter_that_cannot_be_is_told_in_one_line(
    tmp_path: Path, words: list[str], line: str
) -> None:
    machine = Machine(tmp_path)
    (machine.checkout / "hosts").write_text("a slots=4\nb slots=2\n", encoding="utf-8")
    result = machine.run("launch/torchrun.sh", *words, "hosts", "configs/base.yaml")
    assert (result.returncode, result.stderr) == (2, f"torchrun.sh: {line}\n")


def test_filter_and_hosts_with_users_are_told_apart(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    (machine.checkout / "hosts").write_text("me@a slots=4\n", encoding="utf-8")
    result = machine.run("launch/hostfile.sh", "--include", "me@a", "hosts", "configs/base.yaml")
    assert (result.returncode, result.stderr) == (
        2,
        "hostfile.sh: --include=me@a: @ separates hosts there, and stands in names of HOSTFILE; "
        "give the user in ~/.ssh/config\n",
    )


@pytest.mark.parametrize(
    "option, text",
    [
        ("--include", "c@a:3,1,1,0"),
        ("--include", "b:0@b@a"),
        ("--include", "a:2@a:1@c"),
        ("--include", "b"),
        ("--exclude", "b"),
        ("--exclude", "a:0,3@b:0"),
        ("--exclude", "a:1@a@c:00"),
    ],
)
def test_filter_selects_what_deepspeed_does(option: str, text: str) -> None:
    runner = pytest.importorskip("deepspeed.launcher.runner")
    pool = {"a": 4, "b": 2, "c": 1}
    script = f"""
        source launch/environment.sh; own_option() {{ return 1; }}; source launch/on_hosts.sh
        read_options {option} {text}
        read_hosts <(printf '%s\\n' 'a slots=4' 'b slots=2' 'c slots=1')
        choose_slots; echo "$ranks"
        for host in "${{hosts[@]}}"; do echo "$host ${{slots_of[$host]}}"; done
    """
    result = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    words = {"inclusion": "", "exclusion": "", f"{option[2:5]}lusion": text}
    theirs = runner.parse_inclusion_exclusion(pool, **words)
    expected = [f"{name} {' '.join(map(str, slots))}" for name, slots in theirs.items()]
    assert result.stdout.splitlines() == [str(sum(map(len, theirs.values()))), *expected]


def test_launcher_that_is_missing_is_told_in_one_line(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    (machine.checkout / "hosts").write_text("a slots=4\n", encoding="utf-8")
    machine.tool("ssh", "exit 1")
    words = ("hosts", "configs/base.yaml")
    lines = [
        "hostfile.sh: no pdsh on PATH: run `apt-get install pdsh`, or leave --over pdsh away",
        "mpirun.sh: no mpirun on PATH: run `apt-get install openmpi-bin` on every host, or load "
        "its module",
        f"mpirun.sh: {machine.tools / 'mpirun'} is not that of Open MPI (HYDRA build details:); "
        "use launch/hostfile.sh or torchrun.sh",
    ]
    results = [machine.run("launch/hostfile.sh", "--over", "pdsh", *words)]
    results.append(machine.run("launch/mpirun.sh", *words))
    machine.tool("mpirun", "echo HYDRA build details:")
    results.append(machine.run("launch/mpirun.sh", *words))
    assert [(each.returncode, each.stderr) for each in results] == [
        (2, f"{line}\n") for line in lines
    ]


@pytest.mark.parametrize("name", ["local", "supervise", *ON_HOSTS])
def test_help_is_the_head_of_the_script(tmp_path: Path, name: str) -> None:
    result = Machine(tmp_path).run(f"launch/{name}.sh", "--help")
    text = (ROOT / "launch" / f"{name}.sh").read_text("ascii")
    head = text.partition("\nset ")[0].splitlines()[1:]
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [line[2:] for line in head]


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
