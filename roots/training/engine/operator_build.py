"""Compiling DeepSpeed's operators at their first use: one process builds, a dead one blocks nobody.

torch's own guard for such builds is a file that a killed build leaves behind, after which every
later start waits for ever. Here a kernel lock, which goes with its owner, stands around the build;
whoever holds it knows that torch's file is stale and removes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from roots.device import extensions_folder
from roots.lock import Place, file_lock
from roots.log import get_logger

T = TypeVar("T")

TIMEOUT_SECONDS = 1800.0
_PLACE = Place(
    "TORCH_EXTENSIONS_DIR",
    "DeepSpeed's operators are compiled there",
    "set it to a folder of this machine that can be written",
)
_logger = get_logger(__name__)


def build_alone(construct: Callable[[], T]) -> T:
    """Call `construct`, which may compile into the extensions folder, as the only one to do so.

    Others of this environment wait; raises RootsError naming the owner after TIMEOUT_SECONDS.
    """
    folder = extensions_folder()
    with file_lock(folder / "build.lock", TIMEOUT_SECONDS, _PLACE):
        for stale in folder.glob("*/lock"):
            _logger.warning("removed %s, left behind by a build that was killed", stale)
            stale.unlink()
        return construct()
