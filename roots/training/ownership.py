"""The run folder belongs to one run at a time: global rank 0 takes it for all ranks."""

from __future__ import annotations

from contextlib import ExitStack

from roots.config.run import RunConfig
from roots.device import slurm_job
from roots.lock import RUN_LOCK_NAME, Ownership, Place, owned
from roots.parallel.mesh import Mesh
from roots.parallel.shared_errors import together


def own_run_folder(config: RunConfig, mesh: Mesh, stack: ExitStack) -> Ownership | None:
    """Own the folder of the run until `stack` closes; None on ranks other than global rank 0.

    Raises RootsError on all ranks if another process trains there. Called by all ranks.
    """
    folder = config.run_directory
    fix = "wait for that run or end it, or set another run.name"
    place = Place("run folder", "the run is recorded there", fix, value=str(folder))

    def take() -> Ownership | None:
        if mesh.rank != 0:
            return None
        return stack.enter_context(owned(folder / RUN_LOCK_NAME, place, job=slurm_job()))

    return together(mesh.world, take)
