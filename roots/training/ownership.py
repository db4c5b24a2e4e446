"""The run folder belongs to one run at a time: global rank 0 takes it for all ranks."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path

from roots.config.run import RunConfig
from roots.device import slurm_job
from roots.errors import ExitCode, RootsError, code_of, problem
from roots.lock import RUN_LOCK_NAME, Ownership, Place, owned
from roots.parallel.mesh import Mesh
from roots.parallel.shared_errors import together


def own_run_folder(config: RunConfig, mesh: Mesh, stack: ExitStack) -> Ownership | None:
    """Own the folder of the run until `stack` closes; None on ranks other than global rank 0.

    Raises RootsError on all ranks if another process trains there, or if it cannot be
    written. Called by all ranks.
    """
    folder = config.run_directory
    fix = "wait for that run or end it, or set another run.name"
    place = Place(
        "run folder",
        "the run is recorded there",
        fix,
        value=str(folder),
        unwritable=partial(_unwritable, config),
    )

    def take() -> Ownership | None:
        if mesh.rank != 0:
            return None
        return stack.enter_context(owned(folder / RUN_LOCK_NAME, place, job=slurm_job()))

    return together(mesh.world, take)


def _unwritable(config: RunConfig, error: OSError) -> RootsError:
    """The one line on a folder of the run that cannot be made or written."""
    folder, runs = config.run_directory, Path(config.run.directory)
    field, value = "run.directory", config.run.directory
    rule = f"the run's folder {folder} cannot be written ({error.strerror})"
    if isinstance(error, FileExistsError) and runs.is_dir():
        field, value, fix = "run.name", config.run.name, "move that file away, or set another"
    elif isinstance(error, FileExistsError | NotADirectoryError):
        fix = "set it to a folder, which a file is not"
    elif code_of(error) is ExitCode.NOT_SAVED:
        fix = "free some space on its disk, or set it to a folder on another"
    else:
        fix = "set it to a folder that can be written, or change its rights"
    return RootsError(problem(field, value, rule, fix), exit_code=code_of(error))
