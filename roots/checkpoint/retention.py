"""Which checkpoints of a run are kept, and the removal of the others.

The choice is a function of the steps and their held-out losses alone. It does not matter how often
it is made: what is removed on the way would not be among those kept at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from roots.checkpoint import folders
from roots.checkpoint.manifest import damage_of, read_manifest
from roots.config.training import CheckpointConfig
from roots.errors import RootsError
from roots.log import get_logger

_logger = get_logger(__name__)


@dataclass(frozen=True)
class Keep:
    """What is kept: the newest `last` (0: all), multiples of `every_steps`, and the `best`.

    The newest is kept in any case. The best are those of the lowest held-out losses; of equal ones
    the later step is better, and one without a loss is never among them.
    """

    last: int
    every_steps: int = 0
    best: int = 0

    @classmethod
    def of(cls, config: CheckpointConfig) -> Keep:
        """What a run of `config` keeps."""
        return cls(config.keep_last, config.keep_every_steps, config.keep_best)


def steps_to_keep(losses: Mapping[int, float | None], keep: Keep) -> set[int]:
    """The steps that stay, of all steps saved with their held-out losses."""
    steps = sorted(losses)
    if keep.last == 0:
        return set(steps)
    kept = set(steps[-keep.last :])
    if keep.every_steps:
        kept.update(step for step in steps if step % keep.every_steps == 0)
    measured = [(loss, -step) for step, loss in losses.items() if loss is not None]
    kept.update(-step for _, step in sorted(measured)[: keep.best])
    return kept


def surplus(root: Path, keep: Keep) -> list[Path]:
    """The finished checkpoints below `root` that are not to be kept, oldest first."""
    saved = {folders.step_of(path): path for path in folders.finished_checkpoints(root)}
    losses = {step: _loss(path) if keep.best else None for step, path in saved.items()}
    kept = steps_to_keep(losses, keep)
    return [path for step, path in saved.items() if step not in kept]


def apply(root: Path, keep: Keep) -> list[Path]:
    """Remove the finished checkpoints that are not to be kept; return those removed.

    Nothing is removed, and a warning says so, unless the newest one is sealed: its manifest can be
    read, and every file of it is there in its full length.
    """
    doomed = surplus(root, keep)
    if not doomed:
        return []
    newest = folders.finished_checkpoints(root)[-1]
    if lines := _not_sealed(newest):
        _logger.warning("kept all checkpoints, since the newest is not whole: %s", lines[0])
        return []
    return [path for path in doomed if folders.remove(path)]


def _not_sealed(folder: Path) -> tuple[str, ...]:
    try:
        found = read_manifest(folder)
        return tuple(damage_of(folder, found, found.files, contents=False))
    except RootsError as error:
        return error.lines


def _loss(folder: Path) -> float | None:
    """The held-out loss of a checkpoint; None also if its manifest cannot be read."""
    try:
        return read_manifest(folder).evaluation
    except RootsError:
        return None
