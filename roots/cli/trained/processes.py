"""A trained model on the processes that a command was started on, one or several."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from roots.cli.options.ranks import told_once

if TYPE_CHECKING:
    from roots.device import Device
    from roots.generation.layout import Degrees
    from roots.parallel.mesh import Mesh

Loaded = TypeVar("Loaded")


@contextmanager
def on_processes(
    checkpoint: Path, degrees: Degrees, load: Callable[[Device, Mesh], Loaded]
) -> Iterator[tuple[Loaded, Mesh]]:
    """What `load` gives on each process, which have met in a layout of `degrees`.

    Raises RootsError, told by the first of them, if they cannot be cut so or one cannot load.
    """
    from roots.checkpoint import read_config
    from roots.device import current_device, launch_environment
    from roots.generation.layout import join_processes
    from roots.parallel.process import shutdown
    from roots.parallel.shared_errors import together

    environment = launch_environment()
    device = current_device(environment.local_rank)
    with told_once():
        mesh = join_processes(read_config(checkpoint), degrees, environment, device)
    yield together(mesh.world, lambda: load(device, mesh)), mesh
    # Only after success: with NCCL, leaving the group waits for processes that may be gone.
    shutdown()
