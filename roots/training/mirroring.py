"""The mirror of a run's checkpoints: opened by global rank 0, for all ranks."""

from __future__ import annotations

from contextlib import ExitStack

from roots.checkpoint import folders
from roots.checkpoint.mirror import Mirror
from roots.checkpoint.retention import Keep
from roots.checkpoint.storage import join, storage_at
from roots.checkpoint.stored import StoredCheckpoints
from roots.config.run import RunConfig
from roots.parallel.mesh import Mesh
from roots.parallel.shared_errors import together
from roots.parallel.watchdog.record import Marks


def open_mirror(config: RunConfig, mesh: Mesh, stack: ExitStack, marks: Marks) -> Mirror | None:
    """The mirror of the run until `stack` closes; None on other ranks, and without one.

    Raises RootsError on all ranks if a package is missing. Called by all ranks.
    """
    place = config.checkpoint.mirror

    def build() -> Mirror | None:
        if place is None or mesh.rank != 0:
            return None
        storage = storage_at(join(place, config.run.name), "checkpoint.mirror")
        root = config.run_directory / folders.CHECKPOINTS_FOLDER
        return Mirror(root, StoredCheckpoints(storage), Keep.of(config.checkpoint))

    mirror = together(mesh.world, build)
    if mirror is not None:
        stack.enter_context(mirror)
        # The last wait, which comes first as the stack closes, may be as long as that for a save.
        stack.callback(marks.enter, "checkpoint")
    return mirror
