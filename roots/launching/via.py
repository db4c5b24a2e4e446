"""The ways to start a run, and the script of launch/ that each is."""

from __future__ import annotations

from enum import Enum


class Via(str, Enum):
    """What starts the ranks."""

    local = "local"
    deepspeed = "deepspeed"
    slurm = "slurm"
    torchrun = "torchrun"
    mpirun = "mpirun"


SCRIPTS = {
    Via.local: "local.sh",
    Via.deepspeed: "hostfile.sh",
    Via.slurm: "slurm.sbatch",
    Via.torchrun: "torchrun.sh",
    Via.mpirun: "mpirun.sh",
}
# Those that reach the hosts of a hostfile by ssh.
OVER_SSH = (Via.deepspeed, Via.torchrun, Via.mpirun)
