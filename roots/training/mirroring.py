"""The mirror of a run's checkpoints: opened by global rank 0, for all ranks."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from roots.checkpoint import folders
from roots.checkpoint.mirror import Mirror
from roots.checkpoint.retention import Keep
from roots.checkpoint.storage import join, local_path, storage_at
from roots.checkpoint.stored import StoredCheckpoints
from roots.config.run import RunConfig
from roots.errors import RootsError, problem
from roots.parallel.mesh import Mesh
from roots.parallel.shared_errors import together
from roots.parallel.watchdog.record import Marks


def open_mirror(config: RunConfig, mesh: Mesh, stack: ExitStack, marks: Marks) -> Mirror | None:
    """The mirror of the run until `stack` closes; None on other ranks, and without one.

    Raises RootsError on all ranks if a package is missing, or if it is no other place than that of
    the runs. Called by all ranks.
    """
    place = config.checkpoint.mirror

    def build() -> Mirror | None:
        if place is None or mesh.rank != 0:
            return None
        _refuse_the_place_of_runs(config, place)
        storage = storage_at(join(place, config.run.name), "checkpoint.mirror")
        root = config.run_directory / folders.CHECKPOINTS_FOLDER
        return Mirror(root, StoredCheckpoints(storage), Keep.of(config.checkpoint))

    mirror = together(mesh.world, build)
    if mirror is not None:
        stack.enter_context(mirror)
        # The last wait, which comes first as the stack closes, may be as long as that for a save.
        stack.callback(marks.enter, "checkpoint")
    return mirror


def _refuse_the_place_of_runs(config: RunConfig, place: str) -> None:
    """What lies among the runs is lost with them, and may be the folder of the run itself."""
    runs = Path(config.run.directory).resolve()
    path = local_path(place)
    if path is None:
        return
    if any(each.resolve().is_relative_to(runs) for each in (path, path / config.run.name)):
        rule = f"lies in run.directory={config.run.directory!r}, whose checkpoints it is to outlive"
        fix = "name a folder elsewhere, best on another disk, or the URL of an object store"
        raise RootsError(problem("checkpoint.mirror", place, rule, fix))
