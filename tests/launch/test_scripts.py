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
            "local.sh: usage: launch/local.sh N CONFIG [section.key=value ...], "
            "or N generate|evaluate CHECKPOINT [--option ...]",
        ),
        (
            ["launch/local.sh", "two", "configs/base.yaml"],
            "local.sh: N=two: must be a positive number of ranks; "
            "usage: launch/local.sh N CONFIG [section.key=value ...], "
            "or N generate|evaluate CHECKPOINT [--option ...]",
        ),
        (
            ["launch/local.sh", "0", "configs/base.yaml"],
            "local.sh: N=0: must be a positive number of ranks; "
            "usage: launch/local.sh N CONFIG [section.key=value ...], "
            "or N generate|evaluate CHECKPOINT [--option ...]",
        ),
        (
            ["launch/local.sh", "2", "none.yaml"],
            "local.sh: CONFIG=none.yaml: no such file; "
            "usage: launch/local.sh N CONFIG [section.key=value ...], "
            "or N generate|evaluate CHECKPOINT [--option ...]",
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
            ["launch/torchrun.sh", "--checks", "only", "hosts", "configs/base.yaml"],
            f"torchrun.sh: --checks=only: must be on or off; {usage('torchrun')}",
        ),
        (
            ["launch/local.sh", "2", "configs/base.yaml", "run.name=x", "--via"],
            "local.sh: --via: no such option; "
            "usage: launch/local.sh N CONFIG [section.key=value ...], "
            "or N generate|evaluate CHECKPOINT [--option ...]",
        ),
        (
            ["launch/hostfile.sh", "hosts", "--over", "ssh", "configs/base.yaml"],
            f"hostfile.sh: --over: options stand before HOSTFILE; {usage('hostfile')}",
        ),
        (
            ["launch/torchrun.sh", "hosts", "configs/base.yaml", "--max-restarts", "3"],
            f"torchrun.sh: --max-restarts: options stand before HOSTFILE; {usage('torchrun')}",
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


@pytest.mark.parametrize("name", ON_HOSTS)
def test_hosts_that_cannot_be_are_told_before_anything_starts(tmp_path: Path, name: str) -> None:
    """By the words of roots.launching, whose tests have all of them, and with its exit code."""
    machine = Machine(tmp_path)
    (machine.checkout / "hosts").write_text("a slots=4\nb 2\n", encoding="utf-8")
    machine.tool("ssh", "exit 1")
    machine.tool("pdsh", "exit 1")
    machine.tool("deepspeed", "exit 1")
    machine.tool("mpirun", "echo 'mpirun (Open MPI) 4.1.4'")
    script = (f"launch/{name}.sh", "hosts", "configs/base.yaml")
    result = machine.run(*script, PYTHONPATH=str(ROOT))
    fix = "write the host's name and its number of ranks, `host1 slots=8`"
    assert (result.returncode, result.stderr) == (
        2,
        f"roots: error: hosts line 2='b 2': must read `NAME slots=N`; {fix}\n",
    )


def test_launcher_that_is_missing_is_told_in_one_line(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    (machine.checkout / "hosts").write_text("a slots=4\n", encoding="utf-8")
    words = ("hosts", "configs/base.yaml")
    results = [machine.run(f"launch/{name}.sh", *words) for name in ON_HOSTS]
    machine.tool("ssh", "exit 1")
    ssh = "no ssh on PATH: run `apt-get install openssh-client`"
    python = machine.tools / "python3"
    deepspeed = (
        f"no deepspeed on PATH (it belongs beside {python}): run `{python} -m pip install "
        "--force-reinstall --no-deps deepspeed`"
    )
    lines = [
        *(f"{name}.sh: {ssh}" for name in ON_HOSTS),
        "hostfile.sh: no pdsh on PATH: run `apt-get install pdsh`, or leave --over pdsh away",
        "mpirun.sh: no mpirun on PATH: run `apt-get install openmpi-bin` on every host, or load "
        "its module",
        f"mpirun.sh: {machine.tools / 'mpirun'} is not that of Open MPI (HYDRA build details:); "
        "use launch/hostfile.sh or torchrun.sh",
        *(f"{name}.sh: {deepspeed}" for name in ("hostfile", "local")),
    ]
    results.append(machine.run("launch/hostfile.sh", "--over", "pdsh", *words))
    results.append(machine.run("launch/mpirun.sh", *words))
    machine.tool("mpirun", "echo HYDRA build details:")
    results.append(machine.run("launch/mpirun.sh", *words))
    machine.tool("pdsh", "exit 1")
    results.append(machine.run("launch/hostfile.sh", *words))
    results.append(machine.run("launch/local.sh", "2", "configs/base.yaml"))
    assert [(each.returncode, each.stderr) for each in results] == [
        (2, f"{line}\n") for line in lines
    ]


NAMES_WITH_HELP = ("local", "supervise", "quickstart", "translation", *ON_HOSTS)


@pytest.mark.parametrize("name", NAMES_WITH_HELP)
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
