"""Which checkpoints of a run are kept, and the removal of the others.

The choice is a function of the steps and their held-out losses alone. It does not matter how often
it is made: what is removed on the way would not be among those kept at the end.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from roots.checkpoint import folders
from roots.checkpoint.manifest import all_damage, damage_of, first_of, read_manifest
from roots.config.training import BY_LOSS, CheckpointConfig
from roots.errors import RootsError, problem
from roots.log import get_logger

_logger = get_logger(__name__)


@dataclass(frozen=True)
class Keep:
    """What is kept: the newest `last` (0: all), multiples of `every_steps`, and the `best`.

    The newest is kept in any case. The best are those of the lowest held-out losses, or of what
    else the run judges them by (Manifest.best); of equal ones the later step is better, and one
    without a loss is never among them.
    """

    last: int
    every_steps: int = 0
    best: int = 0

    @classmethod
    def of(cls, config: CheckpointConfig) -> Keep:
        """What a run of `config` keeps."""
        return cls(config.keep_last, config.keep_every_steps, config.keep_best)


@dataclass(frozen=True)
class Pruned:
    """The finished checkpoints that stay, those removed, and those that could not be."""

    kept: list[Path]
    removed: list[Path]
    failed: list[Path]


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
    by = _judged_by(saved[max(saved)]) if saved else BY_LOSS
    losses = {step: _cost(path, by) if keep.best else None for step, path in saved.items()}
    kept = steps_to_keep(losses, keep)
    return [path for step, path in saved.items() if step not in kept]


def apply(root: Path, keep: Keep, held: Collection[Path] = ()) -> list[Path]:
    """Remove the finished checkpoints that are not to be kept; return those removed.

    Those `held` stay for now. Nothing is removed, and a warning says so, unless the newest one is
    sealed: its manifest can be read, and every file of it is there in its full length.
    """
    doomed = [path for path in surplus(root, keep) if path not in held]
    if not doomed:
        return []
    newest = folders.finished_checkpoints(root)[-1]
    if lines := _not_sealed(newest):
        _logger.warning("kept all checkpoints, since the newest is not whole: %s", lines[0])
        return []
    return [path for path in doomed if folders.remove(path)]


def prune(root: Path, keep: Keep, *, dry_run: bool = False) -> Pruned:
    """Remove the finished checkpoints that are not to be kept; with `dry_run` say which, alone.

    Reads every byte of the newest that stays, and of those before it until one is good. Raises
    RootsError, and removes nothing, if none is, or if the best are to stay and no loss is known.
    """
    doomed = surplus(root, keep)
    kept = [path for path in folders.finished_checkpoints(root) if path not in doomed]
    everything = [*kept, *doomed]
    by = _judged_by(max(everything)) if everything else BY_LOSS
    if keep.best and all(_cost(path, by) is None for path in everything):
        fix = "leave it out, or set evaluation.every_steps of the run"
        what = "held-out losses" if by == BY_LOSS else by
        rule = f"chooses by {what}, and no checkpoint of the run has one"
        raise RootsError(problem("--keep-best", keep.best, rule, fix))
    if doomed:
        _refuse_without_a_good_one(root, kept)
    if dry_run:
        return Pruned(kept, doomed, [])
    removed = [path for path in doomed if folders.remove(path)]
    return Pruned(kept, removed, [path for path in doomed if path not in removed])


def _refuse_without_a_good_one(root: Path, kept: Sequence[Path]) -> None:
    lines: list[str] = []
    for path in reversed(kept):
        try:
            found = read_manifest(path)
            damage: Sequence[str] = all_damage(path, found, sorted(found.files))
        except RootsError as error:
            damage = error.lines
        if not damage:
            return
        lines += first_of(damage)
    rule = "would have no good checkpoint left, so nothing was removed"
    fix = "keep more of them; `roots checkpoint verify` names those that are good"
    raise RootsError(*lines, problem("checkpoints", str(root), rule, fix))


def _not_sealed(folder: Path) -> tuple[str, ...]:
    try:
        found = read_manifest(folder)
        return tuple(damage_of(folder, found, found.files, contents=False))
    except RootsError as error:
        return error.lines


def _judged_by(newest: Path) -> str:
    """What the run judges its checkpoints by, as its newest one says."""
    try:
        return read_manifest(newest).best[0]
    except RootsError:
        return BY_LOSS


def _cost(folder: Path, by: str) -> float | None:
    """How bad a checkpoint is by that measure; None also if its manifest cannot be read."""
    try:
        return read_manifest(folder).cost(by)
    except RootsError:
        return None
