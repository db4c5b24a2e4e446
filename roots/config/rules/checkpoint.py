"""Rules of which checkpoints a run keeps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from roots.config.training import BY_LOSS
from roots.errors import problem
from roots.files import local_path

if TYPE_CHECKING:
    from roots.config.run import RunConfig


def best_are_measured(config: RunConfig) -> Iterator[str]:
    """The best checkpoints are those of the lowest held-out losses, so there must be some."""
    if config.checkpoint.keep_best and not config.evaluation.every_steps:
        yield problem(
            "checkpoint.keep_best",
            config.checkpoint.keep_best,
            "has no effect with evaluation.every_steps=0: no loss tells which are the best",
            "set evaluation.every_steps, or checkpoint.keep_best=0",
        )


def best_have_a_measure(config: RunConfig) -> Iterator[str]:
    """What is measured on tasks is measured of those that are asked."""
    by, asked = config.checkpoint.keep_best_by, config.evaluation.tasks
    if by == BY_LOSS:
        return
    if not config.checkpoint.keep_best:
        rule, fix = "has no effect with checkpoint.keep_best=0", "set that to 1 or more"
        yield problem("checkpoint.keep_best_by", by, rule, fix)
    if not asked or "/" not in by:
        rule = "must be loss, or TASK/MEASURE of one of evaluation.tasks"
        fix = "name one, as cloze/acc, or leave it out"
        yield problem("checkpoint.keep_best_by", by, rule, fix)


def kept_besides_some(config: RunConfig) -> Iterator[str]:
    """Where all are kept, none can be kept besides."""
    checkpoint = config.checkpoint
    if checkpoint.keep_last:
        return
    for name in ("keep_every_steps", "keep_best"):
        value = getattr(checkpoint, name)
        if value:
            yield problem(
                f"checkpoint.{name}",
                value,
                "has no effect with checkpoint.keep_last=0, which keeps all",
                f"set checkpoint.keep_last=1 or more, or checkpoint.{name}=0",
            )


def kept_ones_are_saved(config: RunConfig) -> Iterator[str]:
    """Of steps that are not saved, none can be kept."""
    kept, saved = config.checkpoint.keep_every_steps, config.checkpoint.every_steps
    if kept and saved and kept % saved:
        yield problem(
            "checkpoint.keep_every_steps",
            kept,
            f"must be a multiple of checkpoint.every_steps={saved}: only what is saved is kept",
            f"set it to {-(-kept // saved) * saved}, or to 0",
        )


def mirror_outlives_the_runs(config: RunConfig) -> Iterator[str]:
    """What lies among the runs is lost with them, and may be the folder of the run itself.

    Not of RULES: where relative paths and links lead is asked where the run is to train, and not
    where one of its checkpoints is read.
    """
    place, directory = config.checkpoint.mirror, config.run.directory
    path = None if place is None else local_path(place)
    if path is None:
        return
    runs = Path(directory).resolve()
    if any(each.resolve().is_relative_to(runs) for each in (path, path / config.run.name)):
        yield problem(
            "checkpoint.mirror",
            place,
            f"lies in run.directory={directory!r}, whose checkpoints it is to outlive",
            "name a folder elsewhere, best on another disk, or the URL of an object store",
        )


CHECKPOINT_RULES = (best_are_measured, best_have_a_measure, kept_besides_some, kept_ones_are_saved)
