"""What `roots launch` finds around itself: Python, GPUs, Slurm, and the variables of a network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from roots.errors import RootsError
from roots.launching.environment import variable
from roots.launching.gather import HERE
from roots.launching.host_facts import gpus_here
from roots.launching.plan import Surroundings

_SLURM_SECONDS = 15


def surroundings(home: Path, partition: str = "") -> Surroundings:
    """Look around; `home` is the folder that holds `launch`, `partition` the one to ask about."""
    scripts = home / "launch"
    nearby = Path("launch")
    # launch/environment.sh takes an active environment before all others.
    is_active = sys.prefix in (variable("VIRTUAL_ENV"), sys.base_prefix)
    return Surroundings(
        scripts=nearby if nearby.is_dir() and nearby.samefile(scripts) else scripts,
        gpus=len(gpus_here()[0]),
        slurm=_slurm_has_gpus(partition),
        slurm_job=variable("SLURM_JOB_ID"),
        variables={} if is_active else {"VIRTUAL_ENV": sys.prefix},
    )


def network_lines(scripts: Path) -> list[str]:
    """What launch/network.sh would set here, `NAME=value # reason`; its complaint as an error."""
    command = ["bash", str(scripts / "network.sh")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        told = run.stderr.splitlines()
        raise RootsError(*(f"{HERE}: {line.removeprefix('network.sh: ')}" for line in told))
    return run.stdout.splitlines()


def network_problems(scripts: Path) -> list[str]:
    """Why launch/network.sh, which every script of launch/ begins with, would end it."""
    try:
        network_lines(scripts)
    except RootsError as error:
        return list(error.lines)
    return []


def _slurm_has_gpus(partition: str) -> bool | None:
    """Whether nodes of the Slurm that answers here have GPUs; None where none answers."""
    words = [
        "sinfo",
        "--noheader",
        "--format=%G",
        *([f"--partition={partition}"] * bool(partition)),
    ]
    try:
        run = subprocess.run(
            words, capture_output=True, text=True, timeout=_SLURM_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return "gpu" in run.stdout
